"""`attentune env`: what a bug report needs, and nothing that tells whose machine it is."""

import getpass
import json
import platform
import re
import socket
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch

from attentune import environment
from attentune.backbones import MINILM_PACKAGE
from attentune.cli import main


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """What is printed, as text for people and as JSON."""
    found: dict[str, str] = {}
    for name, options in (("text", []), ("json", ["--json"])):
        with pytest.raises(SystemExit) as ended:
            main(["env", *options])
        assert not ended.value.code
        found[name] = capsys.readouterr().out
    return found


def test_versions_and_machine(printed: dict[str, str]) -> None:
    found = json.loads(printed["json"])
    assert found["attentune"] == metadata.version("attentune")
    assert found["python"].startswith(platform.python_version())
    # It says its CUDA too, which the version of its package need not do.
    assert found["libraries"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert found["torch"]["cuda"] == torch.version.cuda
    assert len(found["torch"]["devices"]) == torch.cuda.device_count()
    assert 1 <= found["cores"]["usable"] <= found["cores"]["all"]
    assert found["memory_gib"] > 0
    for version in found["libraries"].values():
        assert version in printed["text"]


def test_nobody_can_be_told_from_it(printed: dict[str, str]) -> None:
    private = {socket.gethostname(), getpass.getuser(), str(Path.home()), str(Path.cwd()), sys.prefix, sys.executable}
    for text in printed.values():
        words = set(re.split(r"[\s\",{}]+", text))
        assert not words & private
        assert not [word for word in words if word.startswith(("/", "~")) or ":\\" in word]


def test_extras() -> None:
    requirements = [
        "torch>=2",
        "numpy>=1; extra == 'some'",
        "torch>=1000; extra == 'some'",
        "no-such-package-at-all>=1; extra == 'none'",
        "attentune[none]; extra == 'both'",
        "numpy>=1; extra == 'both'",
        "no-such-package-at-all; sys_platform == 'nowhere' and extra == 'some'",
    ]
    assert environment.missing_of_extras(["some", "none", "both"], requirements) == {
        "some": ["torch>=1000"],
        "none": ["no-such-package-at-all>=1"],
        "both": ["no-such-package-at-all>=1"],
    }


def test_a_copy_of_minilm_that_is_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package of the same name whose weights are not the original's is told of, not followed by an error."""
    info = tmp_path / f"{MINILM_PACKAGE.replace('-', '_')}-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {MINILM_PACKAGE}\nVersion: 0.1.0\n", encoding="utf-8")
    (info / "RECORD").write_text("model.safetensors,,\n", encoding="utf-8")
    (tmp_path / "model.safetensors").write_bytes(b"others")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "does not hold the weights" in environment.minilm()


def test_minilm_of_the_package(printed: dict[str, str]) -> None:
    where = json.loads(printed["json"])["minilm"]
    assert MINILM_PACKAGE in where or "from the hub" in where
