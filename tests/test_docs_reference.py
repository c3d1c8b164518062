"""The reference is made from the code: nothing that the code has is left out."""

import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

import attentune
from attentune.cli import app
from attentune.training.recipe import TaskOptions, TrainingOptions, method_options

sys.path.append(str(Path(__file__).parents[1] / "docs" / "_ext"))

import commands
import docstrings
import endpoints
import options
from generated import prose, table


@pytest.mark.parametrize("kind", [TaskOptions, TrainingOptions])
def test_every_key_of_a_recipe_has_a_row(kind: type[Any]) -> None:
    made = options.options(kind)
    assert made.count("\n") == len(fields(kind)) + 1
    assert all(f"| `{field.name}` |" in made and field.metadata["help"] for field in fields(kind))


@pytest.mark.parametrize("name", sorted(attentune.METHODS))
def test_every_key_of_a_method_has_a_row(name: str) -> None:
    config = attentune.METHODS[name].config
    made = options.options(config) + options.options(attentune.MethodConfig)
    helped = {f.name: f.metadata["help"] for f in fields(config) if "help" in f.metadata}
    wanted = {key for key in method_options(name) if not helped[key].startswith("filled in")}
    assert [key for key in wanted if f"| `{key}` |" not in made] == []


def test_every_command_has_a_section_with_its_options() -> None:
    group = get_command(app)
    made = commands.reference(group, "attentune")
    found = dict(commands.leaves(group, "attentune"))
    assert {"attentune train", "attentune sources attention", "attentune keys"} <= set(found)
    for words, command in found.items():
        section = made.partition(f"## {words}\n")[2].partition("\n## ")[0]
        assert "```bash\nattentune" in section, f"{words} has no example"
        for parameter in command.params:
            if parameter.name != "help":
                is_option = parameter.param_type_name == "option"
                shown = parameter.opts[0] if is_option else parameter.metavar or parameter.name.upper()
                assert f"`{shown}`".replace("|", r"\|") in section


def test_an_operation_and_a_schema_become_sections() -> None:
    share = {"name": "share", "in": "query", "schema": {"type": "number"}, "description": "How *much*."}
    thing = {
        "description": "A thing.",
        "required": ["a"],
        "properties": {"a": {"type": "array", "items": {"type": "integer"}}},
    }
    make = {
        "description": "Make a thing.",
        "parameters": [share],
        "requestBody": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Thing"}}}},
        "responses": {
            "200": {"content": {"application/json": {"schema": {"type": "string"}}}},
            "404": {"content": {endpoints.PROBLEM: {"schema": {}}}},
        },
    }
    found = {"paths": {"/v1/things": {"post": make}}, "components": {"schemas": {"Thing": thing}}}
    made = "\n".join(endpoints.reference(found))
    for part in (
        "### POST /v1/things",
        "| `share` | query | number | How \\*much\\*. |",
        "Body: `application/json`: [Thing](#thing)",
        "200: `application/json`: string",
        f"404: `{endpoints.PROBLEM}`",
        "### Thing",
        "| `a` | list of integer | yes |  |",
    ):
        assert part in made


def test_docstrings_become_rst() -> None:
    text = "What `it` is, or `None`s.\n\n    a * b\n\nA word_ here.\n\n"
    text += "Raises:\n    DataError: `rows` that\n        do not fit."
    assert docstrings.restructured(text) == [
        "What ``it`` is, or ``None``\\ s.",
        "",
        "::",
        "",
        "    a * b",
        "",
        "A word\\_ here.",
        "",
        ":raises DataError: ``rows`` that",
        "        do not fit.",
    ]


def test_cells_stay_cells() -> None:
    assert table(["a"], [["x|y"]]) == "| a |\n| --- |\n| x\\|y |"
    assert prose("`a_b` is a_b, <c>") == "`a_b` is a\\_b, \\<c\\>"
