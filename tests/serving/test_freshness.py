"""The look at the served folder before each request: a disk that hangs, fails or is gone costs no answer."""

import logging
import os
import shutil
import time
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from attentune.serving import freshness
from attentune.serving.folder import Folder
from serving.app import predicted
from serving.process import until


def test_a_folder_that_hangs_keeps_requests_waiting_once(
    client: TestClient, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(freshness, "PATIENCE", 0.2)
    answer = predicted(client, "tone")
    mark = folder / ".revision"
    os.mkfifo(mark)
    with caplog.at_level(logging.WARNING):
        assert predicted(client, "tone") == answer
        assert "not been read in 0.2 s" in caplog.text
        caplog.clear()
        assert predicted(client, "tone") == answer
        assert [task["name"] for task in client.get("/v1/tasks").json()] == ["names", "tone", "topic"]
        assert not caplog.text
    end = os.open(mark, os.O_WRONLY)
    mark.unlink()
    os.close(end)
    shutil.copytree(folder / "tone", folder / "fresh")
    Folder(folder).changed()
    until(lambda: "fresh" in [task["name"] for task in client.get("/v1/tasks").json()], 20)


def test_a_folder_that_cannot_be_read_is_told_of_once(
    client: TestClient, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    answer = predicted(client, "tone")
    (folder / ".revision").mkdir()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert predicted(client, "tone") == answer
    assert [record.getMessage() for record in caplog.records if "cannot be read" in record.getMessage()] == [
        f"the served folder cannot be read, and its tasks are served as known: [Errno 21] Is a directory: '{folder}/"
        ".revision'"
    ]


@pytest.mark.parametrize("changed", [True, False])
def test_a_folder_that_is_gone_has_not_lost_its_tasks(client: TestClient, folder: Path, changed: bool) -> None:
    if changed:
        Folder(folder).changed()
    answer = predicted(client, "tone")
    away = folder.rename(folder.with_name("away"))
    assert predicted(client, "tone") == answer
    assert client.put("/v1/tasks/new", json={"folder": str(away / "topic")}).status_code == 503
    assert client.delete("/v1/tasks/tone").status_code == 503
    assert not folder.exists()
    away.rename(folder)
    shutil.rmtree(folder / "topic")
    Folder(folder).changed()
    time.sleep(0.01)
    assert [task["name"] for task in client.get("/v1/tasks").json()] == ["names", "tone"]


def test_a_mount_point_without_its_disk_has_not_lost_its_tasks(client: TestClient, folder: Path) -> None:
    Folder(folder).changed()
    answer = predicted(client, "tone")
    away = folder.rename(folder.with_name("away"))
    folder.mkdir()
    assert predicted(client, "tone") == answer
    assert client.put("/v1/tasks/new", json={"folder": str(away / "topic")}).status_code == 503
    assert client.delete("/v1/tasks/tone").status_code == 503
    assert [path.name for path in folder.iterdir()] == [".lock"]
    assert predicted(client, "tone") == answer
    shutil.rmtree(folder)
    away.rename(folder)
    assert client.delete("/v1/tasks/tone").status_code == 204


def test_a_mark_that_is_no_text_is_one_still(client: TestClient, folder: Path) -> None:
    answer = predicted(client, "tone")
    (folder / ".revision").write_bytes(b"\xff\0")
    assert predicted(client, "tone") == answer
