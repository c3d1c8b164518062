"""Tasks per hour: `train_many` beside `train` one by one, on the same tasks, with the same steps of each.

    python benchmarks/together.py                         # some ten minutes on one CPU core
    python benchmarks/together.py --quick
    python benchmarks/together.py --methods pasta --tasks 16 --together 16

Every task tells three intents of the demo apart. Both ways run in one process, in turn, and leave the same folders;
what importing the libraries costs is left out, and would fall on one by one once a task. On a CPU, seconds are those
that the process was computing, so that other work on the machine does not count; on a GPU they are of the clock.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from pages import RESULTS, where
from transformers import logging

from attentune import demo, train, train_many
from attentune.tasks.sources import read

Row = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """How much is trained."""

    tasks: int = 8
    rows: int = 64
    validation: int = 24
    epochs: int = 3
    batch_size: int = 8
    max_length: int = 48
    together: int = 8

    def options(self) -> dict[str, Any]:
        """As keys of a recipe; every task takes all of its steps."""
        own = ("epochs", "batch_size", "max_length")
        return {**{key: getattr(self, key) for key in own}, "patience": 0, "precision": "float32"}


def tasks_of(size: Size) -> dict[str, dict[str, list[Row]]]:
    """Tasks of three intents each, their rows in the demo's order."""
    rows = [row for row in read(str(demo.path("intent", "train")))["train"].rows if len(row["text"]) < 160]
    intents = sorted({row["label"] for row in rows})
    found: dict[str, dict[str, list[Row]]] = {}
    for i, three in zip(range(size.tasks), combinations(intents, 3), strict=False):
        own = [row for row in rows if row["label"] in three][: size.rows + size.validation]
        found[f"task{i}"] = {"train": own[: size.rows], "validation": own[size.rows :]}
    return found


def clock() -> float:
    """Seconds; those of computing where all of it is done here."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def measure(method: str, size: Size, rounds: int) -> dict[str, Any]:
    """Both ways in turn, `rounds` times: seconds, tasks per hour, and how far apart the scores are."""
    data = tasks_of(size)

    def one_by_one(home: Path) -> list[float]:
        found = [train(rows, method, home / name, **size.options()) for name, rows in data.items()]
        return [one.metrics["validation"]["accuracy"] for one in found]

    def together(home: Path) -> list[float]:
        found = train_many(data, home, method=method, together=size.together, **size.options())
        return [one.metrics["validation"]["accuracy"] for one in found.values()]

    seconds: dict[str, list[float]] = {"one by one": [], "together": []}
    scores: dict[str, list[float]] = {}
    for _ in range(rounds):
        for way, run in (("one by one", one_by_one), ("together", together)):
            spent, scores[way] = timed(run)
            seconds[way].append(round(spent, 2))
    per_hour = {way: round(3600 * size.tasks / median(all_), 1) for way, all_ in seconds.items()}
    return {
        "method": method,
        "size": asdict(size),
        "seconds": seconds,
        "tasks_per_hour": per_hour,
        "ratio": round(per_hour["together"] / per_hour["one by one"], 3),
        "mean_accuracy": {way: round(sum(found) / len(found), 4) for way, found in scores.items()},
    }


def timed(run: Callable[[Path], list[float]]) -> tuple[float, list[float]]:
    """Seconds, and what the run gave."""
    with TemporaryDirectory() as scratch:
        begin = clock()
        found = run(Path(scratch))
        return clock() - begin, found


def markdown(result: dict[str, Any]) -> str:
    """The figures as a table."""
    lines = [
        "# Many tasks together",
        "",
        f"`{result['command']}`, {result['date']}. Seconds: {result['seconds_are']}.",
        "",
        *(f"- {key}: {value}" for key, value in result["where"].items()),
        "",
        "| method | tasks | rows of each | batch | together | tasks per hour, one by one | together | ratio |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for run in result["runs"]:
        size, speed = run["size"], run["tasks_per_hour"]
        cells = [run["method"], *(size[key] for key in ("tasks", "rows", "batch_size", "together"))]
        cells += [speed["one by one"], speed["together"], run["ratio"]]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    default = Size()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two small tasks of one method, nothing is written")
    parser.add_argument("--methods", nargs="+", default=["pasta", "kernel_mix"])
    for name, value in asdict(default).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=RESULTS / "together.json")
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    os.environ["HF_HUB_OFFLINE"] = "1"
    torch.set_num_threads(arguments.threads)
    size = Size(**{name: getattr(arguments, name) for name in asdict(default)})
    if arguments.quick:
        size, arguments.methods, arguments.rounds = Size(tasks=2, rows=16, validation=8, epochs=1), ["pasta"], 1
    # What the first run of a process pays for is nobody's.
    measure(arguments.methods[0], Size(tasks=1, rows=8, validation=8, epochs=1), 1)
    cuda = torch.cuda.is_available()
    result: dict[str, Any] = {
        "command": " ".join(["python benchmarks/together.py", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d"),
        "seconds_are": "of the clock, on a GPU" if cuda else "computed by one process on a CPU",
        "where": {**where(), **({"gpu": torch.cuda.get_device_name()} if cuda else {})},
        "runs": [],
    }
    for method in arguments.methods:
        result["runs"].append(measure(method, size, arguments.rounds))
        if arguments.quick:
            continue
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(result, indent=2) + "\n")
        arguments.output.with_suffix(".md").write_text(markdown(result))
    print(markdown(result))


if __name__ == "__main__":
    main()
