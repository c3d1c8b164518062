"""The main job from one command: train four tasks by four methods, compare, answer one mixed batch, write a report.

python -m attentune.demo.run --output demo
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment
from rich.console import Console
from rich.status import Status
from rich.table import Table
from transformers.utils import logging as transformers_logging

from attentune.allocator import keep_freed_memory
from attentune.demo import TASKS, path
from attentune.predict import load_many, predict_many
from attentune.training.train import train

CHOICES = {"intent": "kernel_mix", "sentiment": "pasta", "urgency": "tiny_attention", "entities": "prefix_propagation"}
"""Task -> method: four methods, all of them in one batch afterwards."""

EPOCHS = {"intent": 6, "sentiment": 4, "urgency": 5, "entities": 5}
"""Fewer than the recipes' own, so that the whole of it ends in minutes on two cores."""


@dataclass(frozen=True)
class Line:
    """One trained task."""

    task: str
    method: str
    metric: str
    score: float
    interval: tuple[float, float]
    """Around the score, 95%."""
    baseline: float
    kilobytes: float
    parameters: int
    seconds: float
    trust: dict[str, float]
    """How calibrated the probabilities are on the test rows."""


@dataclass(frozen=True)
class Asked:
    """One row of the mixed batch and its answer."""

    task: str
    text: str
    found: str
    expected: str


def train_all(output: Path, console: Console, epochs: int | None = None) -> list[Line]:
    """One adapter folder a task under `output`."""
    lines: list[Line] = []
    for task, method in CHOICES.items():
        console.print(f"{task}: training {method} ...")
        data, rounds = str(path(task, "train").parent), epochs or EPOCHS[task]
        given: dict[str, Any] = {"epochs": rounds, "max_length": 64, "precision": _precision()}
        with console.status(f"epoch 1 of {rounds}") as status:
            result = train(data, method, output / task, report=_epochs(status), **given)
        metric = result.card.task.main_metric
        around = result.metrics["intervals"]["test"][metric]
        run, weights = result.metrics["run"], result.folder / "adapter_model.safetensors"
        lines.append(
            Line(
                task=task,
                method=method,
                metric=metric,
                score=result.metrics["test"][metric],
                interval=(around["low"], around["high"]),
                baseline=result.metrics["baseline"][metric],
                kilobytes=weights.stat().st_size / 1000,
                parameters=run["trainable_parameters"],
                seconds=run["seconds"],
                trust=result.metrics["calibration"]["test"],
            )
        )
        console.print(f"  {metric} {lines[-1].score:.3f}, bag of words {lines[-1].baseline:.3f}, {run['seconds']} s")
    return lines


def ask(output: Path, each: int = 3) -> tuple[list[Asked], float]:
    """`each` test rows of every task in one batch, each row with its own adapter; and the milliseconds that it took."""
    predictor = load_many({task: output / task for task in CHOICES})
    rows = [(task, row) for i in range(each) for task in CHOICES for row in [_test_rows(task, each)[i]]]
    inputs: list[Any] = [_input(task, row) for task, row in rows]
    names = [task for task, _ in rows]
    predict_many(predictor, inputs, names, batch_size=len(rows))
    begin = time.perf_counter()
    answers = predict_many(predictor, inputs, names, batch_size=len(rows))
    took = 1000 * (time.perf_counter() - begin)
    asked = [
        Asked(task, _shown(task, row), _answer(found), _expected(row))
        for (task, row), found in zip(rows, answers, strict=True)
    ]
    return asked, took


def _epochs(status: Status) -> Callable[[str], None]:
    """Show on a terminal which epoch is done; a log is spared them."""
    return lambda line: status.update(line) if line.startswith("epoch") else None


def _precision() -> str:
    """bfloat16 where the processor multiplies it natively; elsewhere it would be slower than float32."""
    native = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return "bfloat16" if native is not None and native() else "float32"


def _test_rows(task: str, count: int) -> list[dict[str, Any]]:
    with path(task, "test").open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    short = sorted(rows, key=lambda row: len(_shown(task, row)))
    return short[len(short) // 4 :: len(short) // (2 * count)][:count]


def _input(task: str, row: dict[str, Any]) -> Any:
    if TASKS[task].kind == "tagging":
        return row["tokens"]
    return [row["text"], row["text_pair"]] if TASKS[task].kind == "pair" else row["text"]


def _shown(task: str, row: dict[str, Any]) -> str:
    if TASKS[task].kind == "tagging":
        return " ".join(row["tokens"])
    return f"{row['text']} -> {row['text_pair']}" if TASKS[task].kind == "pair" else str(row["text"])


def _answer(found: dict[str, Any]) -> str:
    if "spans" in found:
        return "; ".join(f"{span['label']} {span['text']}" for span in found["spans"]) or "nothing"
    return f"{found['value']:.2f}" if "value" in found else f"{found['label']} ({found['score']:.0%})"


def _expected(row: dict[str, Any]) -> str:
    if "tags" not in row:
        return str(row["label"])
    spans: list[list[str]] = []
    for token, tag in zip(row["tokens"], row["tags"], strict=True):
        if tag.startswith("B-"):
            spans.append([tag[2:], token])
        elif tag.startswith("I-") and spans:
            spans[-1].append(token)
    return "; ".join(" ".join(span) for span in spans) or "nothing"


def show(lines: list[Line], asked: list[Asked], took: float, console: Console) -> None:
    """The two tables on the terminal."""
    table = Table(title="Four tasks on one frozen MiniLM (baseline: bag of words)", show_edge=False)
    for name in ("task", "method", "metric"):
        table.add_column(name, no_wrap=True)
    for name in ("score", "baseline", "kB", "seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    for x in lines:
        numbers = (f"{x.score:.3f}", f"{x.baseline:.3f}", f"{x.kilobytes:.1f}", f"{x.seconds:.0f}")
        table.add_row(x.task, x.method, x.metric, *numbers)
    console.print(table)
    mixed = Table(title=f"One mixed batch: {len(asked)} rows, four methods, {took:.0f} ms", show_edge=False)
    for name in ("task", "text", "answer", "expected"):
        mixed.add_column(name, max_width=48)
    for one in asked[: len(CHOICES)]:
        mixed.add_row(one.task, one.text[:90], one.found, one.expected)
    console.print(mixed)


def write_report(file: Path, lines: list[Line], asked: list[Asked], took: float, seconds: float) -> None:
    """One HTML file that needs nothing else."""
    template = files("attentune.demo").joinpath("report.html.j2").read_text(encoding="utf-8")
    page = Environment(autoescape=True).from_string(template)
    described = {task: TASKS[task].description for task in CHOICES}
    file.write_text(
        page.render(
            lines=lines,
            asked=asked,
            took=took,
            seconds=seconds,
            described=described,
            torch=torch.__version__,
            folder=file.parent,
        ),
        encoding="utf-8",
    )


def main(arguments: list[str] | None = None) -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(prog="attentune.demo.run", description="Train, compare and use four small tasks.")
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder for adapters and report.html")
    parser.add_argument("--epochs", type=int, help="fewer epochs than the recipes say, for a quick look")
    options = parser.parse_args(arguments)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("datasets").setLevel(logging.ERROR)
    keep_freed_memory()
    torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    console, begin = Console(), time.perf_counter()
    options.output.mkdir(parents=True, exist_ok=True)
    try:
        lines = train_all(options.output, console, options.epochs)
        asked, took = ask(options.output)
    except KeyboardInterrupt:
        console.print("interrupted; the same command begins anew (`--epochs 1` for a quick look)")
        raise SystemExit(130) from None
    show(lines, asked, took, console)
    seconds = time.perf_counter() - begin
    write_report(options.output / "report.html", lines, asked, took, seconds)
    console.print(f"{options.output / 'report.html'} written, {seconds:.0f} s in all")


if __name__ == "__main__":
    main()
