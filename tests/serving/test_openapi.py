"""The server keeps what its OpenAPI document says, whatever is sent to it: schemathesis looks for a case where not."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from attentune.backbones import load_backbone
from attentune.serving import keys
from attentune.serving.keys import Keys
from attentune.serving.launch import application
from serving.kit import adapter
from serving.process import Server

# Real names in most of the cases, so that they come further than to a 404; and what no schema can say: whether a folder
# or a tar holds an adapter, whether a tensor has as many texts as its shape says.
CONFIG = """
[dictionaries]
tasks = { values = ["tone", "names"] }
passing = { values = ["passing"] }

[parameters]
"path.name" = { dictionary = "tasks", probability = 0.8 }
"path.task" = { dictionary = "tasks", probability = 0.8 }
"body.items[*].task" = { dictionary = "tasks", probability = 0.5 }

[checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", "503"]

[[operations]]
include-path = ["/v1/tasks/{name}", "/v2/models/{task}/infer"]
checks.positive_data_acceptance.enabled = false

[[operations]]
include-method = "DELETE"
parameters."path.name" = { dictionary = "passing", probability = 0.8 }
"""


@pytest.fixture(scope="module")
def served(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    base, folder = load_backbone(str(tiny_bert)), tmp_path_factory.mktemp("served")
    adapter(base, folder / "tone", "pasta", 1)
    adapter(base, folder / "names", "kernel_mix", 2, kind="token")
    return folder


@pytest.mark.slow
def test_schemathesis_finds_nothing(tiny_bert: Path, served: Path, tmp_path: Path) -> None:
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    folder = shutil.copytree(served, tmp_path / "served")
    shutil.copytree(served / "tone", folder / "passing")
    key = keys.add(tmp_path / "keys.json", "all", ["predict", "admin"], None)
    with Server(tiny_bert, folder, "--no-watch", "--keys", str(tmp_path / "keys.json")) as server:
        command = [sys.executable, "-m", "schemathesis.cli", "run", f"http://{server.address}/openapi.json"]
        options = ["--header", f"Authorization: Bearer {key}", "--max-examples", "10", "--seed", "1", "--no-color"]
        found = subprocess.run(
            [*command, *options, "--generation-deterministic", "--continue-on-failure"],
            capture_output=True, text=True, timeout=400, cwd=tmp_path,
        )  # fmt: skip
        assert found.returncode == 0, found.stdout[-9000:] + found.stderr[-2000:]
        assert "Traceback" not in server.errors()


def test_the_document_names_the_problems(tiny_bert: Path, served: Path, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    keys.add(file, "all", ["predict"], None)
    open_app, closed_app = (application(served, str(tiny_bert), guard) for guard in (None, Keys.read(file)))
    with TestClient(open_app) as client:
        document = client.get("/openapi.json").json()
    with TestClient(closed_app) as client:
        closed = client.get("/openapi.json").json()
    assert "HTTPValidationError" not in document["components"]["schemas"]
    put = document["paths"]["/v1/tasks/{name}"]["put"]
    assert set(put["responses"]) == {"200", "400", "401", "403", "404", "408", "409", "413", "422", "503"}
    problem = {"$ref": "#/components/schemas/ProblemDocument"}
    assert put["responses"]["409"]["content"] == {"application/problem+json": {"schema": problem}}
    assert "security" not in put
    assert closed["paths"]["/v1/tasks/{name}"]["put"]["security"]


@pytest.fixture(scope="module")
def client(tiny_bert: Path, served: Path) -> Iterator[TestClient]:
    with TestClient(application(served, str(tiny_bert)), raise_server_exceptions=False) as client:
        yield client


def asked(task: str, row: str) -> bytes:
    return f'{{"items": [{{"task": "{task}", "input": {row}}}]}}'.encode()


def tensor(data: str, more: str = "", **changes: str) -> bytes:
    parts = {"name": '"text"', "datatype": '"BYTES"', "shape": "[1]", "data": data} | changes
    inputs = ", ".join(f'"{key}": {value}' for key, value in parts.items())
    return f'{{"inputs": [{{{inputs}}}]{more}}}'.encode()


DEEP = "[" * 50_000 + "]" * 50_000
PREDICT, INFER = "/v1/predict", "/v2/models/tone/infer"
HOSTILE: list[tuple[str, bytes, int]] = [
    (PREDICT, asked("tone", '"\\ud800"'), 400),
    (PREDICT, asked("tone", '{"text": "\\ud800"}'), 400),
    (PREDICT, asked("\\ud800", '"x"'), 400),
    (PREDICT, asked("tone", f'{{"text": {DEEP}}}'), 400),
    (PREDICT, asked("tone", '{"text": NaN}'), 400),
    (PREDICT, b"\xff\xfe", 400),
    (PREDICT, b"", 422),
    (PREDICT, asked("tone", '"\\u0000"'), 200),
    (PREDICT, asked("tone", '"' + "a " * 400_000 + '"'), 200),
    (PREDICT, asked("names", '{"text": ""}'), 200),
    (PREDICT, asked("tone", '"' + "a" * 3_000_000 + '"'), 413),
    (INFER, b"[" * 100_000, 400),
    (INFER, tensor('["\\ud800"]'), 400),
    (INFER, tensor(f'["{"[" * 50_000}"]', name='"row"'), 400),
    (INFER, tensor("[]", shape="[999999999999999999, 0]"), 422),
    (INFER, tensor('["x"]', shape="[true]"), 400),
    (INFER, tensor('["x"]', more=', "outputs": 5'), 400),
    (INFER, tensor('["x"]', more=', "outputs": [{"name": "label", "parameters": 5}]'), 400),
    (INFER, tensor("null", parameters='{"binary_data_size": 7}'), 400),
]  # fmt: skip


def test_hostile_bodies_are_answered_with_what_they_deserve(client: TestClient) -> None:
    for path, body, status in HOSTILE:
        found = client.post(path, content=body, headers={"Content-Type": "application/json"})
        assert found.status_code == status, (path, body[:80], found.text)
        assert status == 200 or found.json()["status"] == status
    for folder in ("~nobody", "x" * 5000, "\0", "/dev/zero", "/"):
        assert client.put("/v1/tasks/new", json={"folder": folder}).status_code == 422, folder
    for length in (b"\xb2", b"9" * 5000, b"-1", b"0"):
        headers = {b"Content-Type": b"application/json", b"Inference-Header-Content-Length": length}
        assert client.post(INFER, content=b"{}", headers=headers).status_code == 400, length


def test_every_path_tells_its_methods(client: TestClient) -> None:
    assert client.request("PATCH", "/v1/tasks/tone").headers["allow"] == "DELETE, GET, PUT"
    assert client.get("/v1/predict").headers["allow"] == "POST"
