"""Where figures are kept, of which machine they are, and what their pages have in common."""

import json
import os
import platform
import time
from collections.abc import Sequence
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
