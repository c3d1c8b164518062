"""Does attention over prompts of other tasks help small tasks? ATTEMPT against the same prompt trained from scratch.

    python benchmarks/transfer.py --data FOLDER_OF_SETS [--targets tweet_irony cb] [--seeds 3]

Six source tasks make a library of prompts. Each target is learned from 32 and from 128 rows (as many for validation),
as a plain prompt and as a mixture over the six sources, whose attention learns at the rate of the prompt or, as in the
paper (0.1 and 0.3), at a third of it: same rows, length, steps, batches and rate of the head. For each the rate is the
one of `RATES` that is best on validation with seed 0; further seeds, which draw their own rows, repeat it. Every
finished run is a line of the output file and is not repeated; the library is kept too.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from methods import Runs
from pages import RESULTS
from sets import draw
from tables import Line
from transformers import logging

from attentune.evaluation.heatmap import draw as draw_heatmap
from attentune.tasks import Data, load_data
from attentune.tasks.draw import few
from attentune.training.sources.library import Library
from attentune.training.sources.made import train_source
from attentune.training.train import train

SOURCES = ("sst2", "agnews", "trec6", "mnli_dev", "subj", "tweet_sentiment")
SOURCE_ROWS, SOURCE_EPOCHS = 800, 5
TARGETS = ("tweet_irony", "mrpc", "cb", "cola")
METRICS = {"tweet_irony": "macro_f1", "mrpc": "accuracy", "cb": "macro_f1", "cola": "matthews"}
SIZES = (32, 128)
TEST_ROWS = 500
STEPS, BATCH = 64, 16
RATES = (0.01, 0.05)
LENGTH = 8
CONTENDERS: dict[str, dict[str, Any]] = {
    "scratch": {"attention": "none", "sources": 0},
    "attempt": {"bottleneck": 16},
    "two rates": {"bottleneck": 16},
}
MIXTURES = ("attempt", "two rates")
ATTENTION_RATE = 1 / 3
"""Of the rate of the prompt, with two rates."""


class Transfer:
    """The measurement; `trains=False` reads the finished runs only."""

    def __init__(self, data: Path, runs: Runs, library: Path, seeds: int, precision: str, trains: bool = True) -> None:
        self.data, self.runs, self.library, self.seeds, self.trains = data, runs, library, seeds, trains
        self.common: dict[str, Any] = {
            "max_length": 64,
            "batch_size": BATCH,
            "length": LENGTH,
            "head_learning_rate": 0.005,
            "patience": 0,
            "precision": precision,
        }

    def make_sources(self) -> None:
        """Train the prompts that the library does not have yet."""
        there = Library(self.library).names() if self.library.is_dir() else []
        for name in (name for name in SOURCES if name not in there):
            start = time.process_time()
            rows = load_data(self.data / name)
            rows = replace(rows, train=draw(rows.train, SOURCE_ROWS), validation=draw(rows.validation, 200), test=[])
            options: dict[str, Any] = {**self.common, "epochs": SOURCE_EPOCHS, "batch_size": 32, "learning_rate": 0.03}
            card = train_source(rows, self.library, name, **options)
            print(name, card.score["accuracy"], f"{time.process_time() - start:.0f} s", file=sys.stderr)

    def measure(self, target: str, size: int) -> dict[str, list[Line]]:
        """Contender -> its runs at the rate that validation chose, a seed each; only what is finished if need be."""
        whole = load_data(self.data / target)
        whole = replace(whole, test=draw(whole.test, TEST_ROWS))
        return {name: list(self._seeds(whole, target, size, name)) for name in CONTENDERS}

    def _seeds(self, whole: Data, target: str, size: int, name: str) -> Iterator[Line]:
        tried = [self._run(whole, target, size, name, rate, 0) for rate in RATES]
        if None in tried:
            return
        best = max((line for line in tried if line), key=lambda line: line["validation"])
        yield best
        for seed in range(1, self.seeds):
            line = self._run(whole, target, size, name, best["key"]["rate"], seed)
            if line:
                yield line

    def _run(self, whole: Data, target: str, size: int, name: str, rate: float, seed: int) -> Line | None:
        rates = {"learning_rate": rate}
        if name == "two rates":
            rates["attention_learning_rate"] = ATTENTION_RATE * rate
        key = {
            "target": target,
            "rows": size,
            "contender": name,
            "rate": rate,
            "seed": seed,
            "steps": STEPS,
            "options": {**self.common, **CONTENDERS[name], **rates},
            "sources": [Library(self.library).card(source).sha256[:12] for source in SOURCES],
        }
        done = self.runs.find(key)
        if done or not self.trains:
            return done
        rows, start = few(whole, size, seed), time.process_time()
        epochs = STEPS / -(-len(rows.train) // BATCH)
        mixed: dict[str, Any] = {"library": self.library, "source_names": list(SOURCES)} if name in MIXTURES else {}
        options: dict[str, Any] = {**self.common, **CONTENDERS[name], **mixed, **rates}
        options |= {"epochs": epochs, "seed": seed}
        with TemporaryDirectory() as scratch:
            metrics = train(rows, "attempt", Path(scratch) / target, **options).metrics
        scores = {split: metrics[split][METRICS[target]] for split in ("validation", "test")}
        seconds = round(time.process_time() - start, 1)
        return self.runs.add(key, {**scores, "attention": metrics.get("attention"), "seconds": seconds})


def markdown(found: dict[tuple[str, int], dict[str, list[Line]]], library: Library) -> str:
    """What came out, as a table; mean over seeds, and each seed's difference."""
    lines = ["| source | accuracy on validation |", "|---|---|"]
    lines += [f"| {name} | {library.card(name).score['accuracy']:.3f} |" for name in SOURCES]
    lines += [
        "",
        "| target | score | rows | from scratch | attempt | two rates | differences by seed | with two rates |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (target, size), runs in found.items():
        values = {name: [line["test"] for line in runs[name]] for name in CONTENDERS}
        if not all(values.values()):
            continue
        each = " | ".join(
            ", ".join(f"{b - a:+.3f}" for a, b in zip(values["scratch"], values[name], strict=False))
            for name in MIXTURES
        )
        means = " | ".join(f"{np.mean(values[name]):.3f}" for name in CONTENDERS)
        lines.append(f"| {target} | {METRICS[target]} | {size} | {means} | {each} |")
    return "\n".join(lines)


def weights(found: dict[tuple[str, int], dict[str, list[Line]]]) -> dict[str, dict[str, float]]:
    """Row of the heat map -> mean weight of every prompt over seeds."""
    rows: dict[str, dict[str, float]] = {}
    for (target, size), runs in found.items():
        for contender in MIXTURES:
            each: Sequence[dict[str, float]] = [line["attention"] for line in runs[contender]]
            if each:
                label = f"{target}, {size} rows" + (", two rates" if contender == "two rates" else "")
                rows[label] = {name: float(np.mean([one[name] for one in each])) for name in each[0]}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder with a folder of splits a set")
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=TARGETS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--library", type=Path, default=Path("runs/prompts"), help="where the six sources are kept")
    parser.add_argument("--output", type=Path, default=RESULTS / "transfer.jsonl", help="where runs are kept")
    parser.add_argument("--precision", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--report", action="store_true", help="train nothing, show what is finished")
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    torch.set_num_threads(arguments.threads)
    runs, library = Runs(arguments.output), arguments.library
    transfer = Transfer(
        arguments.data, runs, library, arguments.seeds, arguments.precision, trains=not arguments.report
    )
    if not arguments.report:
        transfer.make_sources()
    found = {(target, size): transfer.measure(target, size) for target in arguments.targets for size in SIZES}
    print(markdown(found, Library(library)))
    rows = weights(found)
    if rows:
        picture = arguments.output.with_suffix(".svg")
        draw_heatmap(rows, (*SOURCES, "target"), picture, "Attention over source prompts (validation rows)")


if __name__ == "__main__":
    main()
