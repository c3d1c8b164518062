"""Tasks through the server's HTTP: uploads, versions, trials, and what is refused of them."""

import io
import json
import os
import shutil
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from safetensors.torch import load_file, save_file
from test_predict import near

from attentune.backbones import load_backbone
from attentune.store import CARD, FILES, METRICS, WEIGHTS
from attentune.tasks.classify import Regression
from serving.app import TEXTS, alone, client_of, predicted
from serving.kit import adapter
from serving.process import tar_of, until


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
    """Between two renames there is `.topic.aside` alone; an earlier version may be broken; both do no harm."""
    (folder / "topic").rename(folder / ".topic.aside")
    (folder / "names").rename(folder / ".names.old")  # The same, by who trained into the served folder.
    broken = shutil.copytree(made["better"], folder / ".versions" / "tone" / "0123")
    (broken / "adapter_model.safetensors").write_bytes(b"nonsense")
    with client_of(tiny_bert, folder) as client:
        found = {task["name"]: task for task in client.get("/v1/tasks").json()}
        assert found.keys() == {"tone", "topic", "names"}
        assert found["tone"]["earlier"] == []


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


def test_a_version_beside_a_trial_is_alike(client: TestClient, made: dict[str, Path]) -> None:
    client.put("/v1/tasks/tone", json={"folder": str(made["topic"])})
    client.put("/v1/tasks/tone", json={"folder": str(made["better"])})
    tried = client.put("/v1/tasks/tone?share=0.5", json={"folder": str(made["tone"])}).json()
    first = tried["earlier"][0]["id"]
    for refused in (
        client.put("/v1/tasks/tone", json={"folder": str(made["topic"])}),
        client.put("/v1/tasks/tone", json={"folder": str(made["names"])}),
        client.post("/v1/tasks/tone/rollback", json={"version": first}),
    ):
        assert (refused.status_code, "end the trial first" in refused.json()["detail"]) == (409, True), refused.text
    assert client.get("/v1/tasks/tone").json() == tried
    client.post("/v1/tasks/tone/trial", json={"promote": False})
    assert client.post("/v1/tasks/tone/rollback", json={"version": first}).json()["version"]["id"] == first


def test_numbers_agree_when_they_are_close(tiny_bert: Path, tmp_path: Path) -> None:
    base, task = load_backbone(str(tiny_bert)), Regression(mean=3.0, std=2.0)
    stars = adapter(base, tmp_path / "tasks" / "stars", task=task)
    for more, agrees in ((0.05, "true"), (0.2, "false")):  # of the head's bias, in standard deviations
        file = shutil.copytree(stars, tmp_path / agrees) / WEIGHTS
        tensors = load_file(file)
        (bias,) = (name for name in tensors if name.endswith("out_bias"))
        save_file({**tensors, bias: tensors[bias] + more}, file)
        with client_of(tiny_bert, tmp_path / "tasks") as client:
            client.put("/v1/tasks/stars?shadow=true", json={"folder": str(file.parent)})
            predicted(client, "stars")
            wanted = f'attentune_shadow_answers_total{{agrees="{agrees}",task="stars"}} 1.0'
            until(lambda wanted=wanted, client=client: wanted in client.get("/metrics").text, 20)
            client.post("/v1/tasks/stars/trial", json={"promote": False})


def test_tasks_are_listed_and_go_while_a_disk_hangs(client: TestClient, folder: Path) -> None:
    pipe = folder / "names" / METRICS
    pipe.unlink()
    os.mkfifo(pipe)
    found: list[Any] = []
    writing: list[int] = []
    looking = threading.Thread(target=lambda: found.append(client.get("/v1/tasks/names")))
    looking.start()
    try:
        until(lambda: writing.append(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)) or writing, 20)  # It is being read.
        assert client.delete("/v1/tasks/tone").status_code == 204
        assert [task["name"] for task in client.get("/v1/tasks").json()] == ["names", "topic"]
        assert not found
    finally:
        os.close(writing[0])
        looking.join()
    assert (found[0].status_code, found[0].json()["scores"]) == (200, {})


@pytest.mark.parametrize(
    "content", ['{"test": "\\ud800"}', '{"test": ' + "[" * 500 + "]" * 500 + "}", '{"test": 1e999}']
)
def test_one_odd_folder_hides_no_other(client: TestClient, made: dict[str, Path], tmp_path: Path, content: str) -> None:
    odd = shutil.copytree(made["better"], tmp_path / "odd")
    (odd / METRICS).write_text(content)
    put = client.put("/v1/tasks/odd", content=tar_of(odd))
    assert put.status_code in (200, 422), put.text
    assert len(client.get("/v1/tasks").json()) == 3 + (put.status_code == 200)
    (odd / METRICS).unlink()
    card = json.loads((odd / CARD).read_text())
    for labels in ([0, 1, 2], "abc", ["a", "b", "\ud800"], ["a", "a", "b"], None):
        (odd / CARD).write_text(json.dumps({**card, "task": {**card["task"], "labels": labels}}))
        assert client.put("/v1/tasks/odd", content=tar_of(odd)).status_code == 422
    (odd / CARD).write_text(json.dumps({**card, "task": {**card["task"], "labels": ["a", "a", "b"]}}))
    detail = client.put("/v1/tasks/odd", content=tar_of(odd)).json()["detail"]
    assert "wants a label of its own for each class, found 'a' twice" in detail
    assert client.get("/v1/tasks").status_code == 200


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
