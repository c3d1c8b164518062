"""A server as users start it: a process, an existing client, a folder that changes, an end that loses nothing."""

import json
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton

from attentune.backbones import load_backbone
from attentune.store import WEIGHTS
from serving.kit import adapter
from serving.process import Server, until


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def server(tiny_bert: Path, folder: Path) -> Iterator[Server]:
    adapter(load_backbone(str(tiny_bert)), folder / "tone", "pasta", 1, labels=3)
    with Server(tiny_bert, folder) as server:
        assert json.loads(server.started) == {"url": f"http://{server.address}", "tasks": ["tone"]}
        yield server


@pytest.mark.slow
@pytest.mark.parametrize("binary", [True, False])
def test_tritonclient_as_it_comes(server: Server, binary: bool) -> None:
    client = triton.InferenceServerClient(server.address)
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
    _, direct = server.post([{"task": "tone", "input": text} for text in texts])
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
def test_the_folder_is_followed(server: Server, folder: Path, tiny_bert: Path, tmp_path: Path) -> None:
    base = load_backbone(str(tiny_bert))

    def versions() -> dict[str, str]:
        return {task["name"]: task["version"]["id"] for task in json.loads(server.get("/v1/tasks"))}

    shutil.copytree(adapter(base, tmp_path / "topic", "kernel_mix", 2), folder / "topic")
    until(lambda: "topic" in versions())
    before = versions()
    broken = adapter(base, tmp_path / "broken", "kernel_mix", 3)
    (broken / WEIGHTS).write_bytes(b"nonsense")
    shutil.copytree(broken, folder / "broken")
    adapter(base, folder / "topic", "kernel_mix", 4)
    until(lambda: versions()["topic"] != before["topic"])
    assert versions().keys() == {"tone", "topic"}
    shutil.rmtree(folder / "topic")
    until(lambda: "topic" not in versions())
    shutil.rmtree(folder / "broken")


@pytest.mark.slow
def test_a_server_that_is_told_to_end_finishes_what_it_accepted(server: Server) -> None:
    found: list[Any] = []
    items = [{"task": "tone", "input": "good film"}] * 400
    asking = [threading.Thread(target=lambda: found.append(server.post(items))) for _ in range(3)]
    for thread in asking:
        thread.start()
    until(lambda: "attentune_requests_running 3.0" in server.get("/metrics") or found)
    server.process.send_signal(signal.SIGTERM)
    for thread in asking:
        thread.join(60)
    assert [(status, len(answer["answers"])) for status, answer in found] == [(200, 400)] * 3
    assert server.process.wait(30) in (0, -signal.SIGTERM)
