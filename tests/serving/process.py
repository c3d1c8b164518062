"""A server in a process of its own, started as users start it."""

from __future__ import annotations

import http.client
import io
import json
import os
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Server:
    """`attentune serve` on a free port, from `with` to its end."""

    def __init__(self, backbone: Path, folder: Path, *options: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self.address = f"127.0.0.1:{self.port}"
        self._log = tempfile.TemporaryFile()  # noqa: SIM115, it lives as long as the process
        command = [sys.executable, "-m", "attentune.cli", "serve", str(folder), "--backbone", str(backbone)]
        self.process = subprocess.Popen(
            [*command, "--port", str(self.port), "--json", *options],
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={name: value for name, value in os.environ.items() if "PYTEST" not in name} | {"MAX_WAIT_MS": "1"},
        )

    def __enter__(self) -> Server:
        assert self.process.stdout is not None
        try:
            self.started = self.process.stdout.readline()
            assert self.started, self.errors()
            until(self._ready)
        except BaseException:
            self.__exit__()  # A start that fails leaves no process for the tests after it.
            raise
        return self

    def _ready(self) -> bool:
        assert self.process.poll() is None, self.errors()
        return json.loads(self.get("/ready")) == {"status": "ready"}

    def __exit__(self, *error: object) -> None:
        self.kill()
        self._log.close()

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def errors(self) -> str:
        """What it wrote on stderr."""
        self._log.seek(0)
        return self._log.read().decode()

    def get(self, path: str) -> str:
        """The body of an answer."""
        with urllib.request.urlopen(f"http://{self.address}{path}", timeout=30) as answer:
            return answer.read().decode()

    def post(self, items: list[dict[str, Any]]) -> tuple[int, Any]:
        """Predict: status and body."""
        status, content = self.send("POST", "/v1/predict", json.dumps({"items": items}).encode(), "application/json")
        return status, json.loads(content)

    def put(self, name: str, content: bytes) -> int:
        """Upload a tar: the status."""
        return self.send("PUT", f"/v1/tasks/{name}", content, "application/x-tar")[0]

    def delete(self, name: str) -> int:
        """Remove a task: the status."""
        return self.send("DELETE", f"/v1/tasks/{name}", b"", "application/json")[0]

    def send(self, method: str, path: str, body: bytes, kind: str) -> tuple[int, bytes]:
        """Any request: status and body."""
        request = urllib.request.Request(f"http://{self.address}{path}", body, {"Content-Type": kind}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()


def tar_of(folder: Path) -> bytes:
    """An adapter folder as an upload."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        archive.add(folder, arcname=folder.name)
    return buffer.getvalue()


def until(holds: Callable[[], Any], seconds: float = 400) -> None:
    """Wait until it holds."""
    end = time.monotonic() + seconds
    while True:
        try:
            if holds():
                return
        except (OSError, http.client.HTTPException):
            pass
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.05)
