"""The Open Inference Protocol."""

import asyncio
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from test_predict import near

from attentune.serving.folder import Folder, copy_of, version_id
from attentune.serving.launch import application
from attentune.store import WEIGHTS
from serving.app import TEXTS, alone, called, predicted


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


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut off": lambda file: file.write_bytes(file.read_bytes()[:-9]),
    "unreadable": lambda file: [file.unlink(), file.mkdir()],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_row_that_cannot_be_read_is_no_fault_of_who_asks(tiny_bert: Path, folder: Path, damage: str) -> None:
    file, whole = folder / "tone" / WEIGHTS, (folder / "tone" / WEIGHTS).read_bytes()
    body = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [3], "data": TEXTS}]}
    with TestClient(application(folder, str(tiny_bert), warm_bytes=1)) as client:
        DAMAGES[damage](file)
        items = [{"task": ["tone", "topic"], "input": TEXTS[0]}]
        lost, found = client.post("/v1/predict", json={"items": items}).json()["answers"]
        assert (lost["error"]["status"], "answer" in found) == (503, True)
        assert lost["error"]["detail"].startswith("the tensors of tone cannot be read: ")
        refused = client.post("/v2/models/tone/infer", json=body)
        assert (refused.status_code, refused.headers["retry-after"], refused.json()["detail"]) == (
            503,
            "1",
            lost["error"]["detail"],
        )
        if file.is_dir():
            file.rmdir()
        file.write_bytes(whole)
        assert predicted(client, "tone")["label"]


def test_a_version_that_is_replaced_while_the_body_comes_does_not_answer(
    client: TestClient, made: dict[str, Path]
) -> None:
    app: Any = client.app
    registry = app.state.service.registry
    first = registry.task("tone").active.id
    tensor = {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["sun"]}

    async def receive() -> Any:
        await asyncio.to_thread(registry.put, "tone", copy_of(made["better"]))
        return {"type": "http.request", "body": json.dumps({"inputs": [tensor]}).encode()}

    status, problem = called(client, "POST", f"/v2/models/tone/versions/{first}/infer", receive)
    assert (status, "does not answer" in problem["detail"]) == (404, True)
