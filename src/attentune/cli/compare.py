"""`attentune compare`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from attentune.cli import show
from attentune.cli.train import Kind, Label, Text
from attentune.errors import ConfigError

if TYPE_CHECKING:
    from attentune.comparison.summary import Summary


def compare_command(
    data: Annotated[
        list[str] | None,
        typer.Argument(metavar="[DATA]...", help="Tasks: folders, files, hub data sets, or demo:intent and the like."),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder of runs and report.")] = Path("comparison"),
    methods: Annotated[str, typer.Option(help="Contenders, with commas between; all: every one there is.")] = "all",
    task: Kind = None,
    text: Text = None,
    label: Label = None,
    choices: Annotated[
        list[str] | None, typer.Option(help="A column of a choice, or the one with lists of them; repeatable.")
    ] = None,
    rates: Annotated[int, typer.Option(help="Learning rates to choose from, for every contender.")] = 3,
    seeds: Annotated[int, typer.Option(help="Runs with the chosen rate.")] = 2,
    rows: Annotated[int, typer.Option(help="Training rows, at most.")] = 1000,
    test_rows: Annotated[int, typer.Option(help="Test rows, at most; of validation half as many.")] = 1000,
    epochs: Annotated[float, typer.Option(help="Passes over the training rows.")] = 4.0,
    minutes: Annotated[float | None, typer.Option(help="Begin no run after so many minutes.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows in a step. [default: the recipe's]")] = None,
    max_length: Annotated[int | None, typer.Option(help="Most tokens of a row. [default: the recipe's]")] = None,
    precision: Annotated[str, typer.Option(help="Of training: auto, float32 or bfloat16.")] = "auto",
    frozen: Annotated[str, typer.Option(help="Of frozen weights: float32, bfloat16 or float16.")] = "float32",
    attention_dropout: Annotated[
        float | None, typer.Option(help="Of attention weights while training. [default: the backbone's]")
    ] = None,
    backbone: Annotated[str, typer.Option(help="minilm, a folder, or a hub id.")] = "minilm",
    workers: Annotated[int, typer.Option(help="Runs at the same time, each in a fresh process; 0: all in one.")] = 1,
    ray: Annotated[
        str | None, typer.Option(help="Work on a Ray cluster: local, auto (the one that runs here) or host:port.")
    ] = None,
    add: Annotated[
        bool, typer.Option("--add", help="Keep the other tasks of OUTPUT, each under its own conditions.")
    ] = False,
    report: Annotated[bool, typer.Option("--report", help="Train nothing, draw the report of what is done.")] = False,
    json: show.Json = False,
) -> None:
    """Compare methods on tasks: scores with intervals, bytes, seconds, memory, latency, in one report.

    Example: attentune compare demo:intent demo:sentiment --methods pasta,lora --rows 200 --output comparison

    --task, --text, --label and --choices hold for every task that is named; what they do not say is guessed.

    The learning rate of each is chosen on validation. Finished runs are kept in OUTPUT/runs and not repeated while the
    backbone has the same weights, so the same command goes on after a kill. A run that fails is told of, and the others
    go on; the exit code is then 1, and the same command tries it again.
    """
    from transformers.utils import logging

    from attentune.comparison.compare import compare
    from attentune.comparison.contenders import names
    from attentune.comparison.plan import Conditions
    from attentune.comparison.report import report as draw
    from attentune.comparison.sets import Reading

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if report and data:
        raise ConfigError("--report draws what is done and takes no data; drop one of them")
    failed = 0
    if not report:
        if not data:
            raise ConfigError("no task given; wanted folders, files, hub data sets or demo:intent and the like")
        with show.resumable("goes on: finished runs are kept"):
            schedule = compare(
                data,
                names() if methods == "all" else [name.strip() for name in methods.split(",")],
                output,
                Conditions(
                    backbone=backbone,
                    rows=rows,
                    test_rows=test_rows,
                    epochs=epochs,
                    batch_size=batch_size,
                    max_length=max_length,
                    precision=cast("Any", precision),
                    frozen=cast("Any", frozen),
                    attention_dropout=attention_dropout,
                ),
                reading=Reading(task, tuple(text or ()), label, tuple(choices or ())),
                rates=rates,
                seeds=seeds,
                minutes=minutes,
                workers=workers,
                ray_address=ray,
                add=add,
                report=(lambda line: None) if json else show.progress,
            )
        failed = len(schedule.failed)
    _show(draw(output), output, json)
    if failed:
        raise typer.Exit(1)


def _show(summary: Summary, output: Path, json: bool) -> None:
    if json:
        show.as_json(asdict(summary))
        return
    for task in summary.tasks:
        lines = [
            (x.shown, x.score.value, f"[{x.score.low:.3f}, {x.score.high:.3f}]", x.rate, x.bytes, x.seconds)
            for x in task.lines
        ]
        show.table(["contender", task.metric, "95 %", "rate", "bytes", "seconds"], lines, task.name)
    for name, why in summary.failures:
        show.progress(f"{name}: failed, {why}")
    count = len(summary.failures)
    failed = f", {count} failed; what failed is tried again at the next start" if count else ""
    show.progress(f"{output / 'report.html'} and report.md: {summary.done} runs, {summary.left} left{failed}")
