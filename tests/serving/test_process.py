"""A server as users start it: a process, an existing client, a folder that changes, an end that loses nothing."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton

from attentune.backbones import load_backbone
from attentune.store import WEIGHTS
from serving.kit import adapter


@pytest.fixture(scope="module")
def server(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path, Any]]:
    folder, base = tmp_path_factory.mktemp("served"), load_backbone(str(tiny_bert))
    adapter(base, folder / "tone", "pasta", 1, labels=3)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "attentune.cli", "serve", str(folder), "--backbone", str(tiny_bert)]
    process = subprocess.Popen(
        [*command, "--port", str(port), "--json"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "MAX_WAIT_MS": "1"},
    )
    assert process.stdout is not None
    assert json.loads(process.stdout.readline()) == {"url": f"http://127.0.0.1:{port}", "tasks": ["tone"]}
    address = f"127.0.0.1:{port}"
    _until(lambda: _get(f"http://{address}/ready") == {"status": "ready"})
    yield address, folder, process
    process.kill()
    process.communicate()


def _get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.load(answer)


def _post(url: str, body: Any) -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def _until(holds: Any, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            if holds():
                return
        except OSError:
            pass
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("binary", [True, False])
def test_tritonclient_as_it_comes(server: Any, binary: bool) -> None:
    address, _, _ = server
    client = triton.InferenceServerClient(address)
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("tone")
    assert client.get_server_metadata()["name"] == "attentune"
    assert client.get_model_metadata("tone")["inputs"][0]["name"] == "text"
    texts = np.array(["good film", "bad rain — très"], dtype=object)
    given = triton.InferInput("text", [2], "BYTES")
    given.set_data_from_numpy(texts, binary_data=binary)
    wanted = [triton.InferRequestedOutput(name, binary_data=binary) for name in ("label", "probabilities")]
    found = client.infer("tone", [given], outputs=wanted)
    direct = _post(f"http://{address}/v1/predict", {"items": [{"task": "tone", "input": text} for text in texts]})
    answers = [entry["answer"] for entry in direct["answers"]]
    labels, probabilities = found.as_numpy("label"), found.as_numpy("probabilities")
    assert labels is not None
    assert [v.decode() if isinstance(v, bytes) else v for v in labels] == [a["label"] for a in answers]
    assert probabilities is not None
    assert probabilities.shape == (2, 3)
    np.testing.assert_allclose(probabilities, [list(a["probabilities"].values()) for a in answers], atol=1e-5)
    with pytest.raises(triton.InferenceServerException):
        client.infer("nobody", [given])


@pytest.mark.slow
def test_the_folder_is_followed(server: Any, tiny_bert: Path, tmp_path: Path) -> None:
    address, folder, _ = server
    base = load_backbone(str(tiny_bert))

    def versions() -> dict[str, str]:
        return {task["name"]: task["version"]["id"] for task in _get(f"http://{address}/v1/tasks")}

    shutil.copytree(adapter(base, tmp_path / "topic", "kernel_mix", 2), folder / "topic")
    _until(lambda: "topic" in versions())
    before = versions()
    broken = adapter(base, tmp_path / "broken", "kernel_mix", 3)
    (broken / WEIGHTS).write_bytes(b"nonsense")
    shutil.copytree(broken, folder / "broken")
    adapter(base, folder / "topic", "kernel_mix", 4)
    _until(lambda: versions()["topic"] != before["topic"])
    assert versions().keys() == {"tone", "topic"}
    shutil.rmtree(folder / "topic")
    _until(lambda: "topic" not in versions())
    shutil.rmtree(folder / "broken")


@pytest.mark.slow
def test_a_server_that_is_told_to_end_finishes_what_it_accepted(server: Any) -> None:
    address, _, process = server
    found: list[Any] = []
    body = {"items": [{"task": "tone", "input": "good film"}] * 400}
    asking = [
        threading.Thread(target=lambda: found.append(_post(f"http://{address}/v1/predict", body))) for _ in range(3)
    ]
    for thread in asking:
        thread.start()
    _until(
        lambda: b"attentune_requests_running 3.0" in urllib.request.urlopen(f"http://{address}/metrics").read() or found
    )
    process.send_signal(signal.SIGTERM)
    for thread in asking:
        thread.join(60)
    assert [len(answer["answers"]) for answer in found] == [400] * 3
    assert process.wait(30) in (0, -signal.SIGTERM)
