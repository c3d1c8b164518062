"""docs/reference/matrix.md: drawn from what the laws found, and nothing that they ask is missing in it."""

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from laws.matrix import APART, CELL, REFUSED, collect
from laws.zoo import ZOO

from attentune.methods import BUILT_IN

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
matrix = importlib.import_module("matrix")
FOUND: list[dict[str, Any]] = json.loads(matrix.FOUND.read_text(encoding="utf-8"))
AGAIN = f"run: pytest tests/laws --matrix {matrix.FOUND.relative_to(ROOT)} && python scripts/matrix.py"


def asked() -> Iterator[tuple[str, str, str]]:
    """Form, architecture and feature of every cell that a law asks, read from the marks of the tests."""
    for file in sorted((ROOT / "tests" / "laws").glob("test_*.py")):
        module = importlib.import_module(f"laws.{file.stem}")
        for test in vars(module).values():
            marks = {mark.name: mark for mark in getattr(test, "pytestmark", ()) if mark.name != "parametrize"}
            if "feature" not in marks:
                continue
            (feature,), fixed = marks["feature"].args, marks["feature"].kwargs.get("kind")
            for mark in test.pytestmark:
                names, cells = mark.args if mark.name == "parametrize" else ((), ())
                if "form" not in (names if isinstance(names, tuple) else (names,)):
                    continue
                for cell in cells:
                    values = getattr(cell, "values", cell)
                    form, kind = values if isinstance(values, tuple) else (values, fixed)
                    yield form.label, kind, feature


def test_every_cell_that_the_laws_ask_is_there() -> None:
    found = {(row["form"], row["kind"], feature) for row in FOUND for feature in row["features"]}
    assert found == set(asked()), AGAIN


def test_methods_architectures_and_features() -> None:
    assert {row["form"].split("-")[0] for row in FOUND} == {method.name for method in BUILT_IN} | {"loreft"}
    assert {row["kind"] for row in FOUND} == set(ZOO)
    assert {feature for *_, feature in asked()} == set(matrix.FEATURES)


def test_nothing_fails() -> None:
    assert not [row for row in FOUND for found in row["features"].values() if "fails" in found]


def test_the_page_is_what_was_found() -> None:
    assert matrix.PAGE.read_text(encoding="utf-8") == matrix.render(FOUND), AGAIN


def test_collect() -> None:
    """Tests of one cell go together; what was said of a refusal is kept, and a failure is never hidden by it."""
    one, other = (CELL, ["pasta", "bert", "merged"]), (CELL, ["pasta", "t5", "start"])
    reports: list[tuple[str, list[tuple[str, Any]]]] = [
        ("passed", [one]),
        ("passed", [one, (REFUSED, "not with biases")]),
        ("passed", [other, (APART, "it has none")]),
        ("failed", [other, (REFUSED, "no")]),
        ("passed", []),
    ]
    assert collect(reports) == [
        {"form": "pasta", "kind": "bert", "features": {"merged": ["holds", "refused: not with biases"]}},
        {"form": "pasta", "kind": "t5", "features": {"start": ["apart: it has none", "fails"]}},
    ]


@pytest.mark.parametrize(
    ("found", "cell"),
    [
        ([], ""),
        (["holds"], "yes"),
        (["holds", "refused: never"], "yes [^1]"),
        (["refused: never", "refused: not now"], "no [^1] [^2]"),
        (["apart: it has none"], "– [^3]"),
        (["fails", "refused: never"], "**fails**"),
    ],
)
def test_cells(found: list[str], cell: str) -> None:
    notes = matrix.Notes()
    notes.mark(["refused: never", "refused: not now", "apart: it has none"])
    assert notes.mark(found) == cell
