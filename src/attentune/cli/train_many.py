"""`attentune train-many`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from attentune.cli import show
from attentune.cli.named import named
from attentune.cli.train import Changes, Library, Recipe, Resume, Source


def train_many_command(
    tasks: Annotated[list[str], typer.Argument(metavar="NAME=DATA...", help="The tasks, and the data of each.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder in which each task gets its own.")],
    method: Annotated[str | None, typer.Option(help="A method that tasks can share. [default: attempt]")] = None,
    backbone: Annotated[
        str | None, typer.Option(help="minilm, a folder, or a hub id. [default: the recipe's, or minilm]")
    ] = None,
    recipe: Recipe = None,
    changes: Changes = None,
    sources: Library = None,
    source: Source = None,
    resume: Resume = False,
    json: show.Json = False,
) -> None:
    """Train several tasks at once, in mixed batches, under one shared attention over source prompts.

    Example: attentune train-many tone=reviews.csv urgency=mails.csv --sources prompts --output models
    """
    from transformers.utils import logging

    from attentune.training.many import train_many
    from attentune.training.recipe import parse_set

    logging.set_verbosity_error()
    chosen: dict[str, Any] = {} if source is None else {"method.source_names": source}
    results = train_many(
        named(tasks, "a task is NAME=DATA"),
        output,
        backbone,
        recipe,
        method=method,
        library=sources,
        resume=resume,
        report=(lambda line: None) if json else show.progress,
        **{**chosen, **parse_set(changes or [])},
    )
    if json:
        show.as_json({name: {"output": str(one.folder), **one.metrics} for name, one in results.items()})
        return
    rows = [_row(name, one.card.task.main_metric, one.metrics) for name, one in results.items()]
    show.table(["task", "metric", "validation", "test", "baseline"], rows)


def _row(name: str, metric: str, metrics: dict[str, Any]) -> list[Any]:
    return [name, metric, *(metrics.get(split, {}).get(metric, "") for split in ("validation", "test", "baseline"))]
