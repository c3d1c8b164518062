"""The five methods beside LoRA, full fine-tuning and a frozen probe: score and bytes, under equal conditions.

    python benchmarks/methods.py --data FOLDER_OF_SETS [--sets trec6 sst2]
    python benchmarks/methods.py --quick

Each contender's learning rate is the one of its grid that is best on validation with seed 0; seed 1 then repeats that
rate. Every finished run is a line of the output file and is not repeated, so a stopped measurement goes on.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from contenders import RATES, build, head_rate, options
from loop import Loop, Plan
from pages import RESULTS, stamp
from probe import Probe
from sets import METRICS, Set, Sizes, load_set
from tables import Line, markdown
from transformers import logging

from attentune.backbones import load_backbone, load_tokenizer


class Runs:
    """The output file: one JSON line a finished run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def lines(self) -> list[Line]:
        """All runs so far."""
        return [json.loads(line) for line in self.path.read_text().splitlines()] if self.path.is_file() else []

    def find(self, key: dict[str, Any]) -> Line | None:
        """The run with exactly these conditions, if it is finished."""
        wanted = json.loads(json.dumps(key))
        return next((line for line in self.lines() if line["key"] == wanted), None)

    def add(self, key: dict[str, Any], result: dict[str, Any]) -> Line:
        """Write one line and show it."""
        line = {"key": key, **result, **stamp()}
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(
            *key.values(), {k: v for k, v in result.items() if k in ("validation", "test", "seconds")}, file=sys.stderr
        )
        return json.loads(json.dumps(line))


class UnfinishedError(Exception):
    """A run that a report would need."""


class Measurement:
    """All contenders on some sets; `trains=False` reads the finished runs only."""

    def __init__(self, runs: Runs, plan: Plan, sizes: Sizes, rates: int, seeds: int, trains: bool = True) -> None:
        self.runs, self.plan, self.sizes, self.rates, self.seeds = runs, plan, sizes, rates, seeds
        self.trains = trains
        self.base, self.tokenizer = load_backbone("minilm", torch.float32), load_tokenizer("minilm")

    def measure(self, chosen: Set) -> Iterator[list[Line]]:
        """The counted runs of each contender: two seeds at the chosen rate; one of the probe, which has no seed."""
        loop = Loop(replace(self.plan, head_rate=head_rate(chosen)), chosen, self.tokenizer)
        for name in ("probe", *RATES):
            with suppress(UnfinishedError):
                yield [self._probe(chosen)] if name == "probe" else self._seeds(loop, name)

    def _seeds(self, loop: Loop, name: str) -> list[Line]:
        tried = [self._run(loop, name, rate, 0) for rate in RATES[name][: self.rates]]
        best = max(tried, key=lambda line: line["validation"])
        return [best, *(self._run(loop, name, best["key"]["rate"], seed) for seed in range(1, self.seeds))]

    def _probe(self, chosen: Set) -> Line:
        key = {"set": chosen.name, "contender": "probe", "sizes": asdict(self.sizes), "max_length": chosen.max_length}
        if done := self._finished(key):
            return done
        start = time.process_time()
        result = asdict(Probe(chosen, self.base, self.tokenizer).run())
        return self.runs.add(key, {**result, "seconds": round(time.process_time() - start, 1), "metric": chosen.metric})

    def _run(self, loop: Loop, name: str, rate: float, seed: int) -> Line:
        key = {
            "set": loop.set.name,
            "contender": name,
            "rate": rate,
            "seed": seed,
            "options": options(name, loop.set),
            "sizes": asdict(self.sizes),
            "max_length": loop.set.max_length,
            "plan": asdict(self.plan),
        }
        if done := self._finished(key):
            return done
        contender = build(name, loop.set, self.base, self.tokenizer, seed)
        parameters = contender.parameters
        result = asdict(loop.run(contender.model, rate, seed))
        return self.runs.add(
            key, {**result, "bytes": contender.bytes(), "parameters": parameters, "metric": loop.set.metric}
        )

    def _finished(self, key: dict[str, Any]) -> Line | None:
        done = self.runs.find(key)
        if done is None and not self.trains:
            raise UnfinishedError
        return done


def main() -> None:
    arguments = _arguments()
    logging.set_verbosity_error()
    torch.set_num_threads(arguments.threads)
    plan, sizes = Plan(epochs=arguments.epochs, precision=arguments.precision), Sizes()
    names, rates, seeds, output = arguments.sets, arguments.rates, 2, arguments.output
    with TemporaryDirectory() as scratch:
        if arguments.quick:
            plan, sizes = replace(plan, epochs=1), Sizes(200, 100, 100)
            names, rates, seeds, output = ["intent"], 1, 1, Path(scratch) / "quick.jsonl"
        measurement = Measurement(Runs(output), plan, sizes, rates, seeds, trains=not arguments.report)
        chosen = (load_set(name, arguments.data, sizes) for name in names)
        print(markdown([list(measurement.measure(one)) for one in chosen]))


def _arguments() -> argparse.Namespace:
    known = [name for name in METRICS if name != "intent"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder with a folder of train, validation and test files a set")
    parser.add_argument("--sets", nargs="+", choices=known, default=known)
    parser.add_argument("--output", type=Path, default=RESULTS / "methods.jsonl", help="where runs are kept")
    parser.add_argument("--epochs", type=int, default=Plan.epochs)
    parser.add_argument("--rates", type=int, default=3, help="how many learning rates of each grid")
    parser.add_argument("--precision", choices=("bfloat16", "float32"), default=Plan.precision)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--report", action="store_true", help="train nothing, show what is finished")
    parser.add_argument("--quick", action="store_true", help="the demo's intent task, 200 rows, one epoch, one rate")
    arguments = parser.parse_args()
    if not arguments.quick and arguments.data is None:
        parser.error("--data names the folder of sets; without it there is --quick")
    return arguments


if __name__ == "__main__":
    main()
