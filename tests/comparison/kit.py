"""What the tests of comparisons share: conditions that are quick, and one run under them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from attentune.comparison.compare import plan
from attentune.comparison.plan import Conditions, Run
from attentune.comparison.sets import load_set


def quick(tiny_bert: Path, **changes: Any) -> Conditions:
    return replace(Conditions(str(tiny_bert), rows=24, epochs=1, batch_size=8, max_length=24), **changes)


def a_run(source: Path, name: str, conditions: Conditions, fold: int = 0) -> Run:
    (cell,) = plan([load_set(str(source))], [name], conditions, rates=1, seeds=1)
    return cell.trials()[fold]


def both(sets: Path) -> tuple[list[str], list[str]]:
    return [str(sets / "tone"), str(sets / "mood")], ["pasta", "probe"]
