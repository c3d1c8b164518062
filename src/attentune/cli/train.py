"""`attentune train`."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from attentune.cli import show

Backbone = Annotated[str, typer.Option(help="minilm, a folder, or a hub id.")]
OwnBackbone = Annotated[
    str | None, typer.Option(help="minilm, a folder, or a hub id. [default: the recipe's, or minilm]")
]
Recipe = Annotated[
    Path | None,
    typer.Option(help="A recipe: a TOML file, or one that ships, such as papers/pasta/mrpc. [default: by task]"),
]
Changes = Annotated[list[str] | None, typer.Option("--set", help="key=value of the recipe; repeatable.")]
Kind = Annotated[
    str | None,
    typer.Option(
        help="classification, pair, multilabel, regression, tagging, question_answering (qa), multiple_choice or "
        "generation."
    ),
]
Text = Annotated[
    list[str] | None, typer.Option(help="The text column; twice for a pair, for a question and its context.")
]
Label = Annotated[str | None, typer.Option(help="The column to learn.")]
Library = Annotated[Path | None, typer.Option("--sources", help="A library of source prompts, to be mixed (attempt).")]
Source = Annotated[list[str] | None, typer.Option(help="A source of the library; repeatable. [default: all of them]")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on after a kill.")]


def train_command(
    output: Annotated[Path, typer.Option("--output", "-o", help="The adapter folder to write.")],
    data: Annotated[
        str | None,
        typer.Argument(
            help="A file, a folder with train/validation/test files, or a hub data set id; left out where the recipe "
            "names it.",
        ),
    ] = None,
    method: Annotated[str | None, typer.Option(help="The method; see `attentune methods`. [default: pasta]")] = None,
    backbone: OwnBackbone = None,
    recipe: Recipe = None,
    changes: Changes = None,
    sources: Library = None,
    source: Source = None,
    task: Kind = None,
    text: Text = None,
    label: Label = None,
    shots: Annotated[
        int | None,
        typer.Option(
            help="Learn from this many training rows in all (not a class), drawn evenly over the classes (for "
            "multilabel: the labels); as many for validation. Classes become words in a gap where the backbone has a "
            "masked-LM head."
        ),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(
            help="Train with this many seeds (each draws its own shots): mean and interval; the best is kept."
        ),
    ] = None,
    report_to: Annotated[
        list[str] | None, typer.Option(help="Follow the run in tensorboard, wandb or mlflow; repeatable.")
    ] = None,
    out_of_scope: Annotated[
        str | None, typer.Option(metavar="LABEL", help="The class of texts that are not for the task.")
    ] = None,
    resume: Resume = False,
    json: show.Json = False,
) -> None:
    """Train an adapter.

    Example: attentune train reviews.csv --method pasta --output sentiment --set epochs=5

    Few labelled rows: attentune train reviews.csv --output sentiment --shots 32 --seeds 5

    As the authors did: attentune train --recipe papers/pasta/mrpc --output mrpc
    """
    from transformers.utils import logging

    from attentune.training.recipe import parse_set
    from attentune.training.seeds import train_seeds
    from attentune.training.train import train

    logging.set_verbosity_error()
    options = {
        "task.shots": shots,
        "training.report_to": report_to,
        "task.out_of_scope": out_of_scope,
        "method.source_names": source,
    }
    named: dict[str, Any] = {key: value for key, value in options.items() if value is not None}
    with show.resumable():
        result = (train if seeds is None else partial(train_seeds, seeds=seeds))(
            data,
            method,
            output,
            backbone,
            recipe,
            library=sources,
            task=task,
            text=text or (),
            label=label,
            resume=resume,
            report=(lambda line: None) if json else show.progress,
            **{**named, **parse_set(changes or [])},
        )
    if json:
        show.as_json({"output": str(result.folder), **result.metrics, "notes": result.notes})
        return
    show.scores(result.metrics)
    if "seeds" in result.metrics:
        show.seeds(result.metrics["seeds"])
    run = result.metrics.get("run", {})
    show.progress(f"{result.folder}: {run.get('trainable_parameters', 0):,} parameters, {run.get('seconds')} s")
