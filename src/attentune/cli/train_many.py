"""`attentune train-many`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from attentune.cli import show
from attentune.cli.named import named
from attentune.cli.train import Changes, Library, OwnBackbone, Recipe, Resume, Source
from attentune.errors import ConfigError


def train_many_command(
    tasks: Annotated[
        list[str],
        typer.Argument(
            metavar="DIR | NAME=DATA...", help="A folder of data sets (each file or folder one task), or each by name."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder in which each task gets its own.")],
    method: Annotated[
        str | None, typer.Option(help="The method of all tasks. [default: pasta; with --share-attention attempt]")
    ] = None,
    backbone: OwnBackbone = None,
    together: Annotated[
        int | None, typer.Option(help="Tasks whose steps are one forward and one backward. [default: 8]")
    ] = None,
    share_attention: Annotated[
        bool, typer.Option("--share-attention", help="Learn one attention over prompts for all tasks (attempt).")
    ] = False,
    recipe: Recipe = None,
    changes: Changes = None,
    sources: Library = None,
    source: Source = None,
    resume: Resume = False,
    json: show.Json = False,
) -> None:
    """Train many tasks at once: each as `attentune train` would, several sharing every forward and backward.

    Example: attentune train-many data --output models --together 8

    A task that fails is told of, and the others go on; the exit code is then 1.

    Columns are found by their names, such as text and label: rename others, or train that task alone with --text and
    --label of `attentune train`.

    One attention over source prompts for all of them:
    attentune train-many tone=reviews.csv urgency=mails.csv --sources prompts --share-attention --output models
    """
    from transformers.utils import logging

    from attentune.training.many import train_many
    from attentune.training.recipe import parse_set

    logging.set_verbosity_error()
    chosen: dict[str, Any] = {} if source is None else {"method.source_names": source}
    with show.resumable():
        results = train_many(
            _sets(tasks),
            output,
            backbone,
            recipe,
            method=method,
            library=sources,
            together=together,
            share_attention=share_attention,
            resume=resume,
            report=(lambda line: None) if json else show.progress,
            **{**chosen, **parse_set(changes or [])},
        )
    if json:
        done = {name: {"output": str(one.folder), **one.metrics} for name, one in results.items()}
        show.as_json({**done, **{name: {"error": str(error)} for name, error in results.failed.items()}})
    else:
        rows = [_row(name, one.card.task.main_metric, one.metrics) for name, one in results.items()]
        show.table(["task", "metric", "validation", "test", "baseline"], rows)
    if results.failed:
        raise typer.Exit(1)


def _sets(tasks: Sequence[str]) -> dict[str, Any]:
    from attentune.tasks.sources import sets_of

    if len(tasks) == 1 and "=" not in tasks[0]:
        return dict(sets_of(tasks[0]))
    try:
        return dict(named(tasks, "a task is NAME=DATA"))
    except ConfigError as error:
        raise ConfigError(f"{error}; or name one folder of data sets, and nothing else") from error


def _row(name: str, metric: str, metrics: dict[str, Any]) -> list[Any]:
    return [name, metric, *(metrics.get(split, {}).get(metric, "") for split in ("validation", "test", "baseline"))]
