"""Decisions on real data: are probabilities true, do sets keep their promise, are texts that are not for a task seen.

    python benchmarks/trust.py FOLDER_OF_SETS                # some twenty minutes on one core
    python benchmarks/trust.py FOLDER_OF_SETS --sets trec6
    python benchmarks/trust.py --report

One adapter a set and method, trained as `attentune train` does by its own recipe (bfloat16 products, three epochs,
seed 0) on at most 6,000 rows, drawn at random; temperature, sets and the threshold of scope are fitted on the
validation rows, at most 1,000 beside those out of scope, and judged on at most 2,000 test rows beside those. clinc150
has 150 intents and texts of none ("oos"), of which neither the adapter nor the temperature learns anything.
"""

import argparse
import json
import random
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from pages import RESULTS, Row, closing, opening, save, stamp, table
from transformers import logging

import attentune
from attentune.allocator import keep_freed_memory
from attentune.tasks import load_data

SETS = {"trec6": None, "tweet_sentiment": None, "banking77": None, "clinc150": "oos"}
"""Set -> its class of texts that are for no class."""
METHODS = ("pasta", "kernel_mix")
SIZES = {"train": 6000, "validation": 1000, "test": 2000}
LENGTH = 48
PROMISES = (80, 90, 95)


def cut(rows: list[dict[str, Any]], count: int, outside: str | None, draw: random.Random) -> list[dict[str, Any]]:
    """At most so many rows in scope, and all that are outside."""
    inside = [row for row in rows if row["label"] != outside]
    return draw.sample(inside, min(count, len(inside))) + [row for row in rows if row["label"] == outside]


def measure(folder: Path, name: str, method: str) -> dict[str, float]:
    """What `evaluate` says of one adapter."""
    draw, data = random.Random(0), load_data(folder / name)
    rows = {part: cut(list(getattr(data, part)), size, SETS[name], draw) for part, size in SIZES.items()}
    scope = {} if SETS[name] is None else {"out_of_scope": SETS[name]}
    with TemporaryDirectory() as place:
        split = {part: rows[part] for part in ("train", "validation")}
        settings: dict[str, Any] = {"epochs": 3, "max_length": LENGTH, "precision": "bfloat16", **scope}
        attentune.train(split, method, Path(place) / "adapter", **settings)
        return attentune.load(Path(place) / "adapter").evaluate(rows["test"])


def calibration(name: str, method: str, found: dict[str, float]) -> Row:
    """Before and after the temperature."""
    row: Row = {"set": name, "method": method, "accuracy": found["accuracy"]}
    for key, label in (("ece", "ECE"), ("ece_mass", "ECE, equal mass"), ("nll", "NLL"), ("brier", "Brier")):
        row |= {f"{label} before": found[f"{key}_before"], f"{label} after": found[key]}
    return row | {"wrong among the surest 90 %": found["risk_at_90"]}


def promises(name: str, method: str, found: dict[str, float]) -> Row:
    """Promised coverage and what was kept."""
    row: Row = {"set": name, "method": method}
    for promise in PROMISES:
        row |= {
            f"{promise} %: kept": found[f"set_coverage_{promise}"],
            f"{promise} %: size": found[f"set_size_{promise}"],
        }
    return row


def scope(name: str, method: str, found: dict[str, float]) -> Row:
    """Texts that are not for the task."""
    return {
        "set": name,
        "method": method,
        "AUROC": found["scope_auroc"],
        "recall": found["scope_recall"],
        "precision": found["scope_precision"],
        "turned away in scope": found["scope_false_alarms"],
        "accuracy in scope": found["accuracy"],
    }


def markdown(results: dict[str, Any]) -> str:
    """The tables."""
    kept = [(one["set"], one["method"], one["found"]) for one in results["rows"]]
    outside = [row for row in kept if SETS[row[0]] is not None]
    lines = [
        *opening("decisions on real data", __doc__),
        "## Probabilities",
        "",
        *table([calibration(*r) for r in kept]),
    ]
    lines += ["", "## Sets of classes", "", "Share of test rows whose set holds the truth, and classes in a set.", ""]
    lines += table([promises(*row) for row in kept])
    if outside:
        lines += ["", "## Texts that are not for the task", "", *table([scope(*row) for row in outside])]
    return "\n".join([*lines, "", closing(results)]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="of the sets, a folder each")
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--report", action="store_true", help="draw the page again from the figures that are there")
    given = parser.parse_args()
    kept = RESULTS / "trust.json"
    results: dict[str, Any] = json.loads(kept.read_text()) if kept.is_file() else {"rows": []}
    if given.report:
        save("trust", results, markdown(results))
        return
    if given.folder is None:
        parser.error("the folder of the sets is wanted")
    logging.set_verbosity_error()
    keep_freed_memory()
    torch.set_num_threads(1)
    for name in given.sets:
        for method in given.methods:
            found = measure(given.folder, name, method)
            others = [one for one in results["rows"] if (one["set"], one["method"]) != (name, method)]
            rows: list[dict[str, Any]] = [*others, {"set": name, "method": method, "found": found}]
            results = {**stamp(), "rows": sorted(rows, key=lambda one: (list(SETS).index(one["set"]), one["method"]))}
            save("trust", results, markdown(results))
    print(markdown(results))


if __name__ == "__main__":
    main()
