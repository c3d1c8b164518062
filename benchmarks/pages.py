"""Where figures are kept, of which machine they are, and what their pages have in common."""

import json
import os
import platform
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from attentune.environment import processor, version_of

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("attentune", "torch", "transformers", "peft", "scikit-learn")
Row = dict[str, Any]


def where() -> dict[str, Any]:
    """Machine and versions."""
    return {
        "machine": f"{processor()}, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: version_of(name) for name in PACKAGES},
    }


def stamp() -> dict[str, Any]:
    """What every result begins with."""
    return {"where": where(), "date": time.strftime("%Y-%m-%d %H:%M")}


def resumed(name: str, parts: Iterable[str]) -> dict[str, Any]:
    """The figures that are kept, with a stamp of now; "dates" says when each part of them was measured."""
    path = RESULTS / f"{name}.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    dates = {part: date_of(results, part) for part in parts if part in results}
    return results | stamp() | {"dates": dates}


def date_of(results: dict[str, Any], part: str) -> str:
    """When a part was measured: with all others, unless it has a date of its own."""
    return results.get("dates", {}).get(part, results["date"])


def days(results: dict[str, Any]) -> str:
    """When all of it was measured, from the first part to the last."""
    dates = sorted(results.get("dates", {}).values()) or [results["date"]]
    return dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"


def opening(title: str, doc: str | None) -> list[str]:
    """A heading, and the paragraph of the script's docstring that says how it was measured."""
    return [f"# Measured: {title}", "", " ".join((doc or "").split("\n\n")[2].split()), ""]


def table(rows: Sequence[Row]) -> list[str]:
    """Rows with equal keys; floats with three digits."""
    lines = [f"| {' | '.join(rows[0])} |", "| --- |" + " ---: |" * (len(rows[0]) - 1)]
    for row in rows:
        cells = [f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def closing(results: dict[str, Any]) -> str:
    """Machine, versions and date."""
    about = results["where"]
    return (
        f"{about['machine']}, {about['threads']} thread(s), torch {about['torch']}, transformers "
        f"{about['transformers']}, peft {about['peft']}, {results['date']}."
    )


def save(name: str, results: dict[str, Any], page: str) -> None:
    """The figures and their page, side by side."""
    (RESULTS / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")
    (RESULTS / f"{name}.md").write_text(page)
