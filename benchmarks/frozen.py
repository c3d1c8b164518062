"""Seconds of training with upper blocks edited, with and without `cache_frozen`.

    python benchmarks/frozen.py             # a few minutes on one CPU core
    python benchmarks/frozen.py --quick

The demo's sentiment task, minilm of six blocks, in turn. On a CPU, seconds are those that the process was computing.
"""

import argparse
import json
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from pages import RESULTS, where
from together import clock
from transformers import logging

from attentune import demo, train
from attentune.tasks.sources import read


def seconds(method: str, blocks: list[int], rows: int, epochs: int, cached: bool) -> float:
    """One run, data and calibration included."""
    found = read(str(demo.path("sentiment", "train")))["train"].rows
    data = {"train": found[:rows], "validation": found[rows : rows + rows // 4]}
    options: dict[str, Any] = {"epochs": epochs, "patience": 0, "precision": "float32", "cache_frozen": cached}
    with TemporaryDirectory() as scratch:
        begin = clock()
        train(data, method, Path(scratch) / "a", layers_to_transform=blocks, **options)
        return clock() - begin


def markdown(result: dict[str, Any]) -> str:
    """The figures as a table."""
    lines = [
        "# Frozen blocks that run once",
        "",
        f"`python benchmarks/frozen.py`, {result['date']}: {result['rows']} rows, {result['epochs']} epochs, minilm.",
        "",
        *(f"- {key}: {value}" for key, value in result["where"].items()),
        "",
        "| method | edited blocks | seconds | with cache_frozen | ratio |",
        "|---|---|---|---|---|",
    ]
    for run in result["runs"]:
        cells = [run["method"], run["blocks"], run["plain"], run["cached"], run["ratio"]]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rows, nothing is written")
    parser.add_argument("--method", default="kernel_mix")
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=RESULTS / "frozen.json")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rows, arguments.epochs = 16, 2
    logging.set_verbosity_error()
    torch.set_num_threads(arguments.threads)
    result: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "rows": arguments.rows,
        "epochs": arguments.epochs,
        "where": where(),
        "runs": [],
    }
    # What the first run of a process pays for is nobody's.
    seconds(arguments.method, [5], min(32, arguments.rows), 1, cached=False)
    for blocks in ([3, 4, 5], [5]):
        spent: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(arguments.rounds):
            for cached, found in spent.items():
                found.append(seconds(arguments.method, blocks, arguments.rows, arguments.epochs, cached))
        plain, kept = (round(median(found), 2) for found in spent.values())
        run = {"method": arguments.method, "blocks": blocks, "plain": plain, "cached": kept}
        result["runs"].append({**run, "ratio": round(plain / kept, 3)})
    if not arguments.quick:
        arguments.output.write_text(json.dumps(result, indent=2) + "\n")
        arguments.output.with_suffix(".md").write_text(markdown(result))
    print(markdown(result))


if __name__ == "__main__":
    main()
