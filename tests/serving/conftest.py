"""Adapters of one backbone, a folder of three tasks, and a server of it."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from attentune.backbones import load_backbone
from serving.app import client_of
from serving.kit import adapter


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


@pytest.fixture
def client(tiny_bert: Path, folder: Path) -> Iterator[TestClient]:
    with client_of(tiny_bert, folder) as client:
        yield client
