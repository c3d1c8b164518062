"""What the laws found, cell by cell: `pytest tests/laws --matrix FILE` writes it, `scripts/matrix.py` draws it.

A cell is a form of a method x an architecture x a feature. The feature is that of the test's mark, `feature("merged")`;
form and architecture are the test's parameters (`kind` of the mark, where a test has one architecture only). A test
that shows a refusal, or that the bare architecture itself cannot do the thing, says so by `record_property`.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

CELL = "matrix: cell"
Says = Callable[[str, object], None]
"""The fixture `record_property`."""
REFUSED = "matrix: refused"
"""The property of a test that carries the sentence of a refusal."""
APART = "matrix: apart"
"""The property of a test that carries why a law asks nothing of this architecture."""
SAID = {REFUSED: "refused", APART: "apart"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--matrix", type=Path, metavar="FILE", help="write what the laws found, as JSON")


def pytest_collection_modifyitems(items: list[Any]) -> None:
    """Give every test its cell; it travels with the reports, from other processes too."""
    for item in items:
        mark = item.get_closest_marker("feature")
        if mark is not None:
            given = item.callspec.params
            item.user_properties.append(
                (CELL, [given["form"].label, given.get("kind", mark.kwargs.get("kind")), *mark.args])
            )


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Write the file, if one is wanted."""
    file = terminalreporter.config.getoption("--matrix")
    if file is None:
        return
    reports = [r for key in ("passed", "failed") for r in terminalreporter.stats.get(key, [])]
    rows = collect((r.outcome, r.user_properties) for r in reports if r.when == "call" or r.failed)
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    file.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    terminalreporter.line(f"{file}: {len(rows)} rows")


def collect(reports: Iterable[tuple[str, list[tuple[str, Any]]]]) -> list[dict[str, Any]]:
    """Outcomes and properties of tests -> a row for each form on each architecture: what was found of every feature.

    That is "holds", "fails", "refused: SENTENCE" or "apart: WHY", and several of them where tests differ.
    """
    found: dict[tuple[str, str], dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for outcome, properties in reports:
        said = dict(properties)
        if CELL not in said:
            continue
        form, kind, feature = said[CELL]
        result = "fails" if outcome == "failed" else "holds"
        result = next(
            (f"{name}: {said[key]}" for key, name in SAID.items() if key in said and outcome == "passed"), result
        )
        found[form, kind][feature].add(result)
    return [
        {"form": form, "kind": kind, "features": {name: sorted(all_of) for name, all_of in sorted(features.items())}}
        for (form, kind), features in sorted(found.items())
    ]
