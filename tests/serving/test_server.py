"""The server through its own HTTP: answers, tasks, keys, limits, both protocols."""

import inspect
import io
import json
import shutil
import socket
import tarfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from test_predict import near

import attentune
from attentune.backbones import load_backbone
from attentune.cli import main
from attentune.cli.serve import serve_command
from attentune.errors import ConfigError
from attentune.serving import Ask, keys
from attentune.serving.folder import Folder, version_id
from attentune.serving.keys import Keys
from attentune.serving.launch import application
from attentune.serving.limits import Limits
from attentune.store import FILES
from serving.kit import adapter
from serving.process import tar_of, until

TEXTS = ["good film", "bad rain the plot is not good", "sun"]


@pytest.fixture(scope="module")
def made(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    where, base = tmp_path_factory.mktemp("adapters"), load_backbone(str(tiny_bert))
    return {
        "tone": adapter(base, where / "tone", "pasta", 1, labels=3),
        "topic": adapter(base, where / "topic", "kernel_mix", 2, labels=5),
        "names": adapter(base, where / "names", "prefix_propagation", 3, labels=4, kind="token", length=3),
        "better": adapter(base, where / "better", "pasta", 4, labels=3),
    }


@pytest.fixture
def folder(made: dict[str, Path], tmp_path: Path) -> Path:
    for name in ("tone", "topic", "names"):
        shutil.copytree(made[name], tmp_path / "tasks" / name)
    return tmp_path / "tasks"


def client_of(tiny_bert: Path, folder: Path, guard: Keys | None = None, **limits: Any) -> TestClient:
    return TestClient(application(folder, str(tiny_bert), guard, Limits(**limits)))


@pytest.fixture
def client(tiny_bert: Path, folder: Path) -> Iterator[TestClient]:
    with client_of(tiny_bert, folder) as client:
        yield client


def alone(folder: Path, backbone: Path, texts: list[str]) -> list[Any]:
    return attentune.load(folder, str(backbone)).predict(texts, batch_size=1)


def predicted(client: TestClient, task: str, text: str = "good film") -> dict[str, Any]:
    answer = client.post("/v1/predict", json={"items": [{"task": task, "input": text}]}).json()["answers"][0]
    return answer["answer"]


def test_predict_answers_in_the_order_of_items_and_tasks(
    client: TestClient, made: dict[str, Path], tiny_bert: Path
) -> None:
    items = [{"task": ["topic", "tone", "names"], "input": TEXTS[0]}, {"task": "tone", "input": TEXTS[1]}]
    found = client.post("/v1/predict", json={"items": items}).json()["answers"]
    assert [a["task"] for a in found] == ["topic", "tone", "names", "tone"]
    for answer, text in zip(found, [*TEXTS[:1] * 3, TEXTS[1]], strict=True):
        assert near(answer["answer"], alone(made[answer["task"]], tiny_bert, [text])[0])


def test_an_item_that_fails_fails_alone(client: TestClient) -> None:
    items = [
        {"task": "tone", "input": TEXTS[0]},
        {"task": "nobody", "input": TEXTS[0]},
        {"task": "tone", "input": ["two", "texts"]},
        {"task": "tone", "input": TEXTS[0], "coverage": 0.9},
    ]
    good, *bad = client.post("/v1/predict", json={"items": items}).json()["answers"]
    assert good["answer"]["label"]
    assert [answer["error"]["status"] for answer in bad] == [404, 422, 422]
    assert bad[0]["error"]["detail"] == "there is no task 'nobody'"


def test_lines_come_with_their_index(client: TestClient) -> None:
    items = [{"task": ["tone", "topic"], "input": text} for text in TEXTS]
    answer = client.post("/v1/predict", json={"items": items}, headers={"Accept": "application/x-ndjson"})
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert sorted(line["index"] for line in lines) == list(range(6))
    whole = client.post("/v1/predict", json={"items": items}).json()["answers"]
    assert all(near(whole[line["index"]]["answer"], line["answer"]) for line in lines)


@pytest.mark.parametrize(
    ("body", "status", "detail"),
    [
        ({"items": []}, 422, "items: List should have at least 1 item"),
        ({}, 422, "items: Field required"),
        ({"items": [{"task": "tone", "input": 3}]}, 422, "items.0.input"),
        ({"items": [{"task": "tone", "input": "x", "more": 1}]}, 422, "items.0.more"),
        ({"items": [{"task": "tone", "input": "x"}] * 2000}, 413, "may ask for 1024"),
    ],
)
def test_bad_requests_are_problem_documents(client: TestClient, body: Any, status: int, detail: str) -> None:
    answer = client.post("/v1/predict", json=body)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert detail in answer.json()["detail"]
    assert answer.json()["status"] == status


def test_without_a_playground_the_root_says_what_is_here(client: TestClient) -> None:
    found = client.get("/")
    assert (found.status_code, found.json()["docs"]) == (200, "/docs")
    assert "pip install 'attentune[ui]'" in found.json()["playground"]
    assert "tone" not in found.text


def test_unknown_paths_and_methods_are_problem_documents(client: TestClient) -> None:
    assert client.get("/nowhere").json()["status"] == 404
    assert client.delete("/v1/predict").json()["status"] == 405
    assert client.get("/v1/tasks/nobody").json()["detail"] == "there is no task 'nobody'"


def test_tasks_are_listed_with_versions_and_bytes(client: TestClient) -> None:
    found = {task["name"]: task for task in client.get("/v1/tasks").json()}
    assert set(found) == {"tone", "topic", "names"}
    assert found["topic"]["version"]["method"] == "kernel_mix"
    assert found["tone"]["labels"] == ["class 0", "class 1", "class 2"]
    assert found["tone"]["version"]["bytes"] > 0


def test_an_upload_replaces_and_rolls_back(
    client: TestClient, folder: Path, made: dict[str, Path], tiny_bert: Path
) -> None:
    before = predicted(client, "tone")
    first = client.get("/v1/tasks/tone").json()["version"]["id"]
    answer = client.put("/v1/tasks/tone", content=tar_of(made["better"]), headers={"Content-Type": "application/x-tar"})
    assert answer.status_code == 200, answer.text
    assert [v["id"] for v in answer.json()["earlier"]] == [first]
    assert near(predicted(client, "tone"), alone(made["better"], tiny_bert, TEXTS[:1])[0])
    assert (folder / ".versions" / "tone" / first / "task.json").is_file()
    back = client.post("/v1/tasks/tone/rollback", json={}).json()
    assert back["version"]["id"] == first
    assert near(predicted(client, "tone"), before)
    assert client.post("/v1/tasks/topic/rollback", json={}).json()["status"] == 409


def test_a_new_task_from_a_folder_and_its_end(client: TestClient, folder: Path, made: dict[str, Path]) -> None:
    answer = client.put("/v1/tasks/fresh", json={"folder": str(made["better"])})
    assert answer.status_code == 200, answer.text
    assert predicted(client, "fresh")["label"]
    assert client.delete("/v1/tasks/fresh").status_code == 204
    assert client.delete("/v1/tasks/fresh").status_code == 404
    assert not (folder / "fresh").exists()


def test_the_same_version_again_changes_nothing(client: TestClient, made: dict[str, Path]) -> None:
    body = {"folder": str(made["tone"])}
    before = client.get("/v1/tasks/tone").json()
    assert client.put("/v1/tasks/tone", json=body).json() == before
    assert client.put("/v1/tasks/tone?share=0.5", json=body).json() == before


def test_a_refused_trial_is_gone_and_an_old_version_may_be_tried(client: TestClient, made: dict[str, Path]) -> None:
    first = client.get("/v1/tasks/tone").json()["version"]["id"]
    client.put("/v1/tasks/tone", json={"folder": str(made["better"])})
    trial = client.put("/v1/tasks/tone?share=0.5", json={"folder": str(made["tone"])}).json()
    assert (trial["trial"]["version"]["id"], trial["earlier"]) == (first, [])
    assert client.post("/v1/tasks/tone/trial", json={"promote": False}).json()["earlier"] == []
    assert client.post("/v1/tasks/tone/rollback", json={}).json()["status"] == 409


def test_bad_bodies_of_uploads_are_refused(client: TestClient) -> None:
    for body in ({}, {"folder": 3}, {"folder": "/nowhere"}, []):
        answer = client.put("/v1/tasks/tone", json=body)
        assert answer.status_code == 422, body
        assert answer.headers["content-type"] == "application/problem+json"


def test_what_a_kill_or_a_hand_leaves_on_disk(tiny_bert: Path, folder: Path, made: dict[str, Path]) -> None:
    """Between two renames there is `.topic.old` alone; an earlier version may be broken; both do no harm."""
    (folder / "topic").rename(folder / ".topic.old")
    broken = shutil.copytree(made["better"], folder / ".versions" / "tone" / "0123")
    (broken / "adapter_model.safetensors").write_bytes(b"nonsense")
    with client_of(tiny_bert, folder) as client:
        found = {task["name"]: task for task in client.get("/v1/tasks").json()}
        assert found.keys() == {"tone", "topic", "names"}
        assert found["tone"]["earlier"] == []


def test_a_stream_ends_in_time(tiny_bert: Path, folder: Path) -> None:
    with client_of(tiny_bert, folder, request_timeout_s=0.3, max_wait_ms=0, max_batch_rows=1) as client:
        body = {"items": [{"task": "tone", "input": "good film " * 20}] * 900}
        answer = client.post("/v1/predict", json=body, headers={"Accept": "application/x-ndjson"})
        last = json.loads(answer.text.splitlines()[-1])
        assert last.get("error", last)["status"] == 503


def test_trials(client: TestClient, made: dict[str, Path], tiny_bert: Path) -> None:
    old, new = (alone(made[name], tiny_bert, TEXTS[:1])[0] for name in ("tone", "better"))
    body = {"folder": str(made["better"])}
    assert client.put("/v1/tasks/tone?shadow=true", json=body).json()["trial"]["shadow"]
    assert near(predicted(client, "tone"), old)
    until(lambda: 'attentune_shadow_answers_total{agrees="' in client.get("/metrics").text, 20)
    assert client.post("/v1/tasks/tone/trial", json={"promote": False}).json()["trial"] is None
    assert client.put("/v1/tasks/tone?share=1", json=body).json()["trial"]["share"] == 1
    assert near(predicted(client, "tone"), new)
    assert client.put("/v1/tasks/tone?share=0.5", json=body).json()["status"] == 409
    assert client.post("/v1/tasks/tone/trial", json={"promote": True}).json()["trial"] is None
    assert near(predicted(client, "tone"), new)


def test_a_trial_is_of_the_same_kind_and_labels(client: TestClient, made: dict[str, Path]) -> None:
    before = client.get("/v1/tasks/tone").json()
    for other, odd in (("names", "which is classification, and the new version is tagging"), ("topic", "class 3")):
        for how in ("share=0.5", "shadow=true"):
            answer = client.put(f"/v1/tasks/tone?{how}", json={"folder": str(made[other])})
            assert (answer.status_code, odd in answer.json()["detail"]) == (409, True), answer.text
    assert client.get("/v1/tasks/tone").json() == before


def test_every_file_of_an_adapter_folder_may_be_uploaded(
    client: TestClient, made: dict[str, Path], tmp_path: Path
) -> None:
    whole = shutil.copytree(made["better"], tmp_path / "whole")
    for name in FILES:
        if not (whole / name).exists():
            (whole / name).write_text("{}")
    answer = client.put("/v1/tasks/whole", content=tar_of(whole), headers={"Content-Type": "application/x-tar"})
    assert answer.status_code == 200, answer.text


def test_hostile_uploads_change_nothing(
    client: TestClient, folder: Path, made: dict[str, Path], tmp_path: Path
) -> None:
    before = sorted(p.relative_to(folder) for p in folder.rglob("*"))
    for name, content, detail in _hostile(made["better"], tmp_path):
        answer = client.put("/v1/tasks/tone", content=content, headers={"Content-Type": "application/x-tar"})
        assert answer.status_code == 422, name
        assert detail in answer.json()["detail"], name
    for name in ("..", "a%2Fb", ".hidden", "-x", "x" * 200):
        assert client.put(f"/v1/tasks/{name}", content=tar_of(made["better"])).status_code in (404, 405, 422), name
    shutil.rmtree(folder / ".incoming", ignore_errors=True)
    assert sorted(p.relative_to(folder) for p in folder.rglob("*")) == before
    assert not (tmp_path / "evil").exists()


def _hostile(good: Path, scratch: Path) -> Iterator[tuple[str, bytes, str]]:
    def tar(*members: tuple[str, bytes | None]) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for name, content in members:
                info = tarfile.TarInfo(name)
                if content is None:
                    info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
                    archive.addfile(info)
                else:
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
        return buffer.getvalue()

    yield "no tar", b"not a tar", "no readable tar"
    yield "traversal", tar(("../evil", b"x")), "outside"
    yield "absolute", tar(("/tmp/evil", b"x")), "outside"
    yield "link", tar(("task.json", None)), "no plain file"
    yield "pickle", tar(("adapter_model.bin", b"x")), "wanted are"
    yield "twice", tar(("task.json", b"x"), ("a/task.json", b"x")), "twice"
    yield "empty", tar(), "no adapter folder"
    broken = shutil.copytree(good, scratch / "broken")
    card = json.loads((broken / "task.json").read_text())
    card["backbone"]["fingerprint"] = "0-float32-0"
    (broken / "task.json").write_text(json.dumps(card))
    yield "other backbone", tar_of(broken), "fingerprint"


def test_keys_scope_and_hide(tiny_bert: Path, folder: Path, made: dict[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    some = keys.add(file, "some", ["predict"], ["tone"])
    admin = keys.add(file, "admin", ["predict", "admin"], None)
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


def _bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_limits(tiny_bert: Path, folder: Path) -> None:
    with client_of(tiny_bert, folder, payload_limit=200, max_queue=2, max_client_batch_size=9) as client:
        long = client.post("/v1/predict", json={"items": [{"task": "tone", "input": "x" * 300}]})
        assert (long.status_code, long.json()["detail"]) == (413, "the body may have 200 bytes")

        def chunks() -> Iterator[bytes]:
            yield from (b" " * 50 for _ in range(10))

        assert client.post("/v1/predict", content=chunks()).status_code == 413
        flood = client.post("/v1/predict", json={"items": [{"task": ["tone"] * 5, "input": "sun"}]})
        assert (flood.status_code, "retry-after" in flood.headers) == (422, False)
        assert "are 5 sequences and the queue holds 2" in flood.json()["detail"]
        assert client.post("/v1/predict", json={"items": [{"task": "tone", "input": "sun"}]}).status_code == 200


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


def test_metrics_and_health(client: TestClient) -> None:
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get("/ready").json() == {"status": "ready"}
    predicted(client, "tone")
    client.post("/v1/predict", json={"items": [{"task": "x" * 50, "input": "sun"}]})
    page = client.get("/metrics").text
    assert 'attentune_answers_total{task="tone"} 1.0' in page
    assert 'attentune_failed_answers_total{task="(unknown)"} 1.0' in page
    assert 'attentune_requests_total{route="/v1/predict",status="200"} 2.0' in page
    assert "attentune_tasks 3.0" in page
    assert 'attentune_tier_hits_total{tier="warm"}' in page


def test_the_open_inference_protocol(client: TestClient, made: dict[str, Path], tiny_bert: Path) -> None:
    assert client.get("/v2").json()["name"] == "attentune"
    assert client.get("/v2/health/live").status_code == client.get("/v2/health/ready").status_code == 200
    document = client.get("/v2/models/tone").json()
    assert {"name": "probabilities", "datatype": "FP32", "shape": [-1, 3]} in document["outputs"]
    body = {"id": "7", "inputs": [{"name": "text", "datatype": "BYTES", "shape": [3], "data": TEXTS}]}
    answer = client.post("/v2/models/tone/infer", json=body).json()
    outputs = {output["name"]: output for output in answer["outputs"]}
    wanted = alone(made["tone"], tiny_bert, TEXTS)
    assert answer["id"] == "7"
    assert outputs["label"]["data"] == [w["label"] for w in wanted]
    assert outputs["probabilities"]["data"] == pytest.approx(
        [p for w in wanted for p in w["probabilities"].values()], abs=1e-5
    )
    assert near([json.loads(text) for text in outputs["answer"]["data"]], wanted)


def test_tensors_are_those_of_the_version_that_answers(
    client: TestClient, folder: Path, made: dict[str, Path], tiny_bert: Path
) -> None:
    """One version answers a request, also one of another shape that was put on trial before that was refused."""
    tone, topic = (alone(made[name], tiny_bert, TEXTS) for name in ("tone", "topic"))
    first = client.get("/v1/tasks/tone").json()["version"]["id"]
    trial = client.put("/v1/tasks/tone?share=1", json={"folder": str(made["better"])}).json()["trial"]["version"]["id"]
    shutil.rmtree(folder / ".versions" / "tone" / trial)
    second = version_id(shutil.copytree(made["topic"], folder / ".versions" / "tone" / version_id(made["topic"])))
    (folder / ".versions" / "tone" / "trial.json").write_text(
        json.dumps({"version": second, "share": 0.5, "shadow": False})
    )
    Folder(folder).changed()
    body = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [3], "data": TEXTS}]}
    seen: set[str] = set()
    for path in ["infer"] * 30 + [f"versions/{first}/infer"] * 5:
        answer = client.post(f"/v2/models/tone/{path}", json=body).json()
        wanted = {first: tone, second: topic}[answer["model_version"]]
        outputs = {output["name"]: output for output in answer["outputs"]}
        assert outputs["probabilities"]["shape"] == [3, len(wanted[0]["probabilities"])]
        assert near([json.loads(text) for text in outputs["answer"]["data"]], wanted)
        assert path == "infer" or answer["model_version"] == first
        seen.add(answer["model_version"])
    assert seen == {first, second}


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ([], "the body: Input should be a valid dictionary"),
        ({"inputs": [{}]}, "inputs.0.name: Field required"),
        (
            {"inputs": [{"name": "text", "datatype": "FP32", "shape": [1], "data": [1]}]},
            "inputs.0.datatype: Input should be 'BYTES'",
        ),
        ({"inputs": [{"name": "text", "datatype": "BYTES", "shape": [2], "data": ["x"]}]}, "has 1 texts"),
        ({"inputs": [{"name": "words", "datatype": "BYTES", "shape": [1], "data": ["x"]}]}, "named text is wanted"),
        (
            {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 9}}]},
            "not there",
        ),
    ],
)
def test_bad_tensors_are_refused(client: TestClient, body: Any, detail: str) -> None:
    answer = client.post("/v2/models/tone/infer", json=body)
    assert answer.status_code == 400
    assert detail in answer.json()["detail"]


def test_the_flags_of_serve_are_the_limits() -> None:
    flags = inspect.signature(serve_command).parameters
    assert {name: flags[name].default for name in asdict(Limits())} == asdict(Limits())
