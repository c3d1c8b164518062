"""Dockerfile and compose file, as far as they can be read: what they name is there."""

import json
import re
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from attentune.cli import app
from attentune.serving.limits import Limits

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")


@pytest.fixture(scope="module")
def service() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))["services"]["attentune"]


def instruction(name: str) -> str:
    (found,) = re.findall(rf"^{name} ?(.+)$", DOCKERFILE, re.MULTILINE)
    return found


def test_the_command_is_one() -> None:
    command: Any = typer.main.get_command(app)
    program, name, *arguments = [*json.loads(instruction("ENTRYPOINT")), *json.loads(instruction("CMD"))]
    assert (program, name) == ("attentune", "serve")
    parsed = command.commands[name].make_context(name, list(arguments)).params
    assert (str(parsed["folder"]), parsed["host"], parsed["port"]) == ("/adapters", "0.0.0.0", 8000)
    assert str(parsed["keys"]) == "/run/secrets/keys"


def test_the_variables_are_limits_that_the_command_reads(
    service: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    command: Any = typer.main.get_command(app)
    for name, value in service["environment"].items():
        monkeypatch.setenv(name, str(value))
    read = command.commands["serve"].make_context("serve", ["adapters"]).params
    limits = {field.name: field.default for field in fields(Limits)}
    for name, value in service["environment"].items():
        assert limits[name.lower()] == read[name.lower()] == value
        monkeypatch.setenv(name, str(value + 1))
        changed = command.commands["serve"].make_context("serve", ["adapters"]).params
        assert changed[name.lower()] == value + 1


def test_folder_port_and_keys_meet(service: dict[str, Any]) -> None:
    assert instruction("VOLUME") == "/adapters"
    assert "./adapters:/adapters" in service["volumes"]
    assert [port.rsplit(":", 1)[1] for port in service["ports"]] == [instruction("EXPOSE")] == ["8000"]
    assert service["secrets"] == ["keys"]
    assert "http://127.0.0.1:8000/health" in DOCKERFILE
    assert instruction("USER") != "root"


def test_what_is_copied_and_installed_is_there() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line.startswith("!")}
    copied = {name for line in re.findall(r"^COPY (.+) \S+$", DOCKERFILE, re.MULTILINE) for name in line.split()}
    assert copied == allowed
    assert all((ROOT / name).exists() for name in copied)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(instruction("ARG EXTRAS=").split(",")) <= set(extras)
