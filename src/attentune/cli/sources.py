"""`attentune sources ...`: a library of source prompts, and what adapters make of them."""

from pathlib import Path
from typing import Annotated, Any

import typer

from attentune.cli import show
from attentune.cli.named import named
from attentune.cli.train import Backbone, Changes, Kind, Label, OwnBackbone, Recipe, Resume, Text

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

Folder = Annotated[Path, typer.Option("--library", help="The folder of source prompts.")]
Name = Annotated[str, typer.Option(help="What the source is called in mixtures.")]


@app.command("train")
def train_command(
    data: Annotated[str, typer.Argument(help="A file, a folder, or a hub data set id.")],
    library: Folder,
    name: Name,
    backbone: OwnBackbone = None,
    recipe: Recipe = None,
    changes: Changes = None,
    task: Kind = None,
    text: Text = None,
    label: Label = None,
    resume: Resume = False,
    json: show.Json = False,
) -> None:
    """Train a plain prompt on a task and keep it as a source.

    Example: attentune sources train reviews.csv --library prompts --name reviews
    """
    from transformers.utils import logging

    from attentune.training.recipe import parse_set
    from attentune.training.sources.made import train_source

    logging.set_verbosity_error()
    columns = {"task": task, "text": text or (), "label": label}
    report = (lambda line: None) if json else show.progress
    options: dict[str, Any] = {**columns, "recipe": recipe, "resume": resume, "report": report}
    with show.resumable():
        card = train_source(data, library, name, backbone, **options, **parse_set(changes or []))
    _show_card(card, json)


@app.command("add")
def add_command(
    file: Annotated[Path, typer.Argument(help="A .pt of ATTEMPT's authors, a .safetensors, or an adapter folder.")],
    library: Folder,
    name: Name,
    backbone: Backbone = "minilm",
    json: show.Json = False,
) -> None:
    """Add a prompt that is there already; an adapter folder knows its backbone, for a file it is named.

    Example: attentune sources add mnli.pt --library prompts --name mnli --backbone t5-base
    """
    from attentune.training.sources.made import keep_file

    _show_card(keep_file(file, library, name, backbone), json)


@app.command("list")
def list_command(library: Folder, json: show.Json = False) -> None:
    """List the sources of a library.

    Example: attentune sources list --library prompts
    """
    from attentune.training.sources.library import Library

    home = Library(library)
    cards = [home.card(name) for name in home.names()]
    if json:
        show.as_json([_plain(card) for card in cards])
        return
    rows = [(c.name, c.task, _main(c.score), c.length, c.width, c.backbone.id) for c in cards]
    show.table(["source", "trained on", "score", "rows", "width", "backbone"], rows)


@app.command("remove")
def remove_command(
    name: Annotated[str, typer.Argument(help="The source.")], library: Folder, json: show.Json = False
) -> None:
    """Take a source out of a library; adapters that mix it keep their own copy.

    Example: attentune sources remove reviews --library prompts
    """
    from attentune.training.sources.library import Library

    Library(library).remove(name)
    if json:
        show.as_json({"removed": name})
    else:
        show.progress(f"{name} is out of {library}")


@app.command("edit")
def edit_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The adapter.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The new adapter folder; may be the same one.")],
    add: Annotated[list[str] | None, typer.Option(help="A source to put in; repeatable.")] = None,
    remove: Annotated[list[str] | None, typer.Option(help="A source to leave out; repeatable.")] = None,
    library: Annotated[Path | None, typer.Option(help="The folder that sources are added from.")] = None,
    json: show.Json = False,
) -> None:
    """Put sources into a trained adapter or leave some out; every other tensor stays as it is.

    Example: attentune sources edit tone --output tone-lean --remove reviews
    """
    from attentune import store
    from attentune.errors import ConfigError
    from attentune.training.sources.edit import with_sources

    if not add and not remove:
        raise ConfigError("nothing to do; wanted --add NAME or --remove NAME")
    store.tell_replaced(store.check_writable(output), show.progress, own=folder)
    stored = with_sources(folder, output, add or (), remove or (), library)
    names = stored.config["source_names"]
    if json:
        show.as_json({"output": str(stored.folder), "sources": names})
    else:
        show.progress(f"{stored.folder}: mixes {', '.join(names)}; `attentune calibrate` fits its probabilities again")


@app.command("attention")
def attention_command(
    adapters: Annotated[list[str], typer.Argument(metavar="[NAME=]DIR...", help="Adapters that mix sources.")],
    text: Annotated[
        list[str] | None, typer.Option(help="Show this text instead of the task's mean; repeatable; tab in pairs.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Draw a heat map: .svg, .png or .pdf.")] = None,
    json: show.Json = False,
) -> None:
    """Show how much of each source a task (mean over its validation rows) or a text takes.

    Example: attentune sources attention tone intent --output attention.svg
    """
    from attentune.evaluation.heatmap import draw
    from attentune.methods.attempt import TARGET

    folders = named(adapters, "an adapter is NAME=DIR or DIR", bare=True)
    rows = _of_texts(folders, text) if text else _of_tasks(folders)
    # In order of appearance, the tasks' own prompts last.
    columns = sorted(dict.fromkeys(name for row in rows.values() for name in row), key=lambda name: name == TARGET)
    if output is not None:
        draw(rows, columns, output, "Attention over source prompts")
        show.progress(f"{output} drawn")
    if json:
        show.as_json(rows)
        return
    show.table(["", *columns], [[name, *(row.get(c, "") for c in columns)] for name, row in rows.items()])


def _of_tasks(folders: dict[str, str]) -> dict[str, dict[str, float]]:
    from attentune import store
    from attentune.errors import StoreError

    rows: dict[str, dict[str, float]] = {}
    for name, folder in folders.items():
        metrics = store.read(folder).metrics
        if "attention" not in metrics:
            raise StoreError(f"{folder} has no attention over sources in its {store.METRICS}; name texts by --text")
        rows[name] = metrics["attention"]
    return rows


def _of_texts(folders: dict[str, str], texts: list[str]) -> dict[str, dict[str, float]]:
    from attentune.cli.predict import form_of, from_lines
    from attentune.predict import load_many

    predictor = load_many(folders)
    rows: dict[str, dict[str, float]] = {}
    for name, card in predictor.cards.items():
        inputs = from_lines(texts, form_of([card.task]))
        for text, weights in zip(texts, predictor.attention(inputs, [name] * len(inputs)), strict=True):
            rows[text if len(folders) == 1 else f"{name}: {text}"] = weights
    return rows


def _show_card(card: Any, json: bool) -> None:
    if json:
        show.as_json(_plain(card))
    else:
        show.progress(f"{card.name}: {card.length} rows of width {card.width} for {card.backbone.id}")


def _plain(card: Any) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(card)


def _main(score: dict[str, float]) -> str:
    """The first score of a kind of task is its main one."""
    return next((f"{name} {value:.3f}" for name, value in score.items()), "")
