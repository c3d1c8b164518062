"""Who may ask how much, and with what the server starts."""

import inspect
import json
import socket
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from attentune.cli import main
from attentune.cli.serve import serve_command
from attentune.errors import ConfigError
from attentune.serving import Ask, keys
from attentune.serving.keys import Keys
from attentune.serving.launch import application
from attentune.serving.limits import Limits
from serving.app import client_of


def test_keys_scope_and_hide(tiny_bert: Path, folder: Path, made: dict[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    some = keys.add(file, "some", ["predict"], ["tone"])
    admin = keys.add(file, "admin", ["predict", "admin"], None)
    bound = keys.add(file, "bound", ["predict", "admin"], ["tone"])
    assert some not in file.read_text()
    with client_of(tiny_bert, folder, Keys.read(file)) as client:
        assert client.get("/v1/tasks").status_code == 401
        assert client.get("/v1/tasks", headers=_bearer("wrong")).status_code == 401
        assert client.get("/health").status_code == 200
        assert [task["name"] for task in client.get("/v1/tasks", headers=_bearer(some)).json()] == ["tone"]
        hidden = client.get("/v1/tasks/topic", headers=_bearer(some))
        missing = client.get("/v1/tasks/nobody", headers=_bearer(some))
        assert hidden.json()["detail"].replace("topic", "nobody") == missing.json()["detail"]
        items = {"items": [{"task": name, "input": "sun"} for name in ("tone", "topic", "nobody")]}
        found = client.post("/v1/predict", json=items, headers=_bearer(some)).json()["answers"]
        assert [a.get("error", {}).get("status") for a in found] == [None, 404, 404]
        for method, path in (("GET", "/metrics"), ("DELETE", "/v1/tasks/tone"), ("PUT", "/v1/tasks/tone")):
            assert client.request(method, path, headers=_bearer(some)).status_code == 403
        assert client.get("/metrics", headers=_bearer(admin)).status_code == 200
        assert client.get("/v2/models/topic", headers=_bearer(some)).status_code == 404
        assert client.get("/metrics", headers=_bearer(bound)).json()["detail"].endswith("which name all tasks")
        # Another task's folder, under the name of one's own.
        taken = client.put("/v1/tasks/tone", json={"folder": str(made["topic"])}, headers=_bearer(bound))
        assert (taken.status_code, "may not name a folder of the server" in taken.json()["detail"]) == (403, True)
        given = client.put("/v1/tasks/tone", json={"folder": str(made["tone"])}, headers=_bearer(admin))
        assert given.status_code == 200


def _bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_limits(tiny_bert: Path, folder: Path) -> None:
    with client_of(tiny_bert, folder, payload_limit=200, max_queue=2, max_client_batch_size=9) as client:
        long = client.post("/v1/predict", json={"items": [{"task": "tone", "input": "x" * 300}]})
        assert (long.status_code, long.json()["detail"]) == (413, "the body may have 200 bytes")

        def chunks() -> Iterator[bytes]:
            yield from (b" " * 50 for _ in range(10))

        assert client.post("/v1/predict", content=chunks()).status_code == 413
        assert client.post("/v2/models/tone/infer", content=chunks()).status_code == 413
        flood = client.post("/v1/predict", json={"items": [{"task": ["tone"] * 5, "input": "sun"}]})
        assert (flood.status_code, "retry-after" in flood.headers) == (422, False)
        assert "are 5 sequences and the queue holds 2" in flood.json()["detail"]
        assert client.post("/v1/predict", json={"items": [{"task": "tone", "input": "sun"}]}).status_code == 200


def test_an_upload_that_is_too_long_or_cut_off_is_no_fault_of_the_server(
    tiny_bert: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with client_of(tiny_bert, folder, upload_limit=1000) as client:
        long = client.put("/v1/tasks/tone", content=iter([b"x" * 600] * 2))
        assert (long.status_code, long.json()["detail"]) == (413, "the body may have 1000 bytes")
        messages = iter([{"type": "http.request", "body": b"x", "more_body": True}, {"type": "http.disconnect"}])

        async def receive() -> Any:
            return next(messages)

        async def send(message: Any) -> None:
            pass

        path = "/v1/tasks/tone"
        scope = {"type": "http", "method": "PUT", "path": path, "headers": [], "query_string": b"", "root_path": ""}
        assert client.portal is not None
        client.portal.call(client.app, scope, receive, send)
        page = client.get("/metrics").text
        assert 'attentune_requests_total{route="/v1/tasks/{name}",status="400"} 1.0' in page
        assert 'status="500"' not in page
    assert not caplog.records


def test_a_full_queue_asks_to_come_back(tiny_bert: Path, folder: Path) -> None:
    app = application(folder, str(tiny_bert), limits=Limits(max_queue=2, max_wait_ms=60_000))
    with TestClient(app) as client:
        (held,) = app.state.service.engine.submit([Ask("tone", "sun")])
        full = client.post("/v1/predict", json={"items": [{"task": ["tone"] * 2, "input": "sun"}]})
        assert (full.status_code, full.headers["retry-after"]) == (503, "1")
        held.cancel()


def test_a_shadow_without_room_costs_no_answer(tiny_bert: Path, folder: Path, made: dict[str, Path]) -> None:
    with client_of(tiny_bert, folder, max_queue=2) as client:
        client.put("/v1/tasks/tone?shadow=true", json={"folder": str(made["better"])})
        asked = client.post("/v1/predict", json={"items": [{"task": ["tone"] * 2, "input": "sun"}]})
        assert [list(a) for a in asked.json()["answers"]] == [["task", "answer"]] * 2


@pytest.mark.parametrize(
    ("limit", "reason"),
    [
        ({"max_batch_rows": 0}, "max_batch_rows is 1 at least, found 0"),
        ({"max_queue": -1}, "max_queue is 1 at least, found -1"),
        ({"max_wait_ms": float("nan")}, "max_wait_ms is a finite number, 0 at least, found nan"),
        ({"request_timeout_s": 0.0}, "request_timeout_s is a finite number above 0"),
    ],
)
def test_limits_that_cannot_be_meant(limit: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        Limits(**limit)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def refused_start(capsys: pytest.CaptureFixture[str], *arguments: Any) -> list[str]:
    """The lines on stderr of a server that does not start."""
    with pytest.raises(SystemExit) as ended:
        main(["serve", *map(str, arguments)])
    told = capsys.readouterr()
    assert (ended.value.code, told.out) == (2, "")
    return told.err.splitlines()


def test_a_server_that_cannot_listen_says_no_address(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = refused_start(capsys, tmp_path, "--port", 99999)
    assert line == "attentune: a port is a number from 1 to 65535, found 99999"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        (line,) = refused_start(capsys, tmp_path, "--port", taken.getsockname()[1])
    assert "nobody can listen on 127.0.0.1:" in line
    (line,) = refused_start(capsys, tmp_path, "--max-batch-rows", 0)
    assert line == "attentune: max_batch_rows is 1 at least, found 0"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"keys": ["x3Secret"]}', "a key is an object with a name"),
        ('{"keys": [%s]}', "a key is an object with a name"),
        ('{"keys": {"shop": []}}', "a key is an object with a name"),
        ('{"keys": null}', 'wanted is {"keys": [...]}'),
        ("[]", 'wanted is {"keys": [...]}'),
        ("{}", 'wanted is {"keys": [...]}'),
        ("[" * 100_000, 'wanted is {"keys": [...]}'),
        ("{", "Expecting property name"),
        ("\udcff", "can't decode byte"),
    ],
)
def test_a_file_that_holds_no_keys(
    content: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = {"name": "shop", "sha256": "0" * 64, "scopes": ["predict"], "tasks": None}
    changes: list[dict[str, Any]] = [{"scopes": "admin"}, {"scopes": ["all"]}, {"scopes": [["predict"]]}]
    changes += [{"tasks": "intent"}, {"tasks": [1]}, {"sha256": "00"}, {"sha256": 7}, {"name": None}]
    file = tmp_path / "keys.json"
    for change in changes if "%s" in content else [{}]:
        file.write_bytes(content.replace("%s", json.dumps(good | change)).encode(errors="surrogateescape"))
        (line,) = refused_start(capsys, tmp_path, "--keys", file)
        assert line.startswith(f"attentune: {file} is no file of keys: ")
        assert reason in line
        assert "x3Secret" not in line
    file.write_text(json.dumps({"keys": [good, {**good, "tasks": ["intent"]}]}))
    assert [key.tasks for key in Keys.read(file).keys or ()] == [None, ("intent",)]


def test_a_folder_that_is_new_is_said_to_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--port", free_port(), "--backbone", tmp_path / "nothing")
    assert len(refused_start(capsys, tmp_path, *options)) == 1
    new, _ = refused_start(capsys, tmp_path / "typo", *options)
    assert new == f"{tmp_path / 'typo'} is new: it is made, and holds no task yet"


def test_the_flags_of_serve_are_the_limits() -> None:
    flags = inspect.signature(serve_command).parameters
    assert {name: flags[name].default for name in asdict(Limits())} == asdict(Limits())
