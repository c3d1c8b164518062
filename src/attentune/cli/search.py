"""`attentune search`."""

from pathlib import Path
from typing import Annotated

import typer

from attentune.cli import show
from attentune.errors import ConfigError


def search_command(
    data: Annotated[str, typer.Argument(help="A file, a folder with train/validation/test files, or a hub id.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The adapter folder to write.")] = Path("adapter"),
    budget: Annotated[
        str | None, typer.Option(help="The most bytes of the adapter's file: 64KB, 70KiB, 0.5MB. [default: any]")
    ] = None,
    latency: Annotated[
        str | None,
        typer.Option(help="The longest forward pass, as a factor of the bare backbone's: 1.1x. [default: any]"),
    ] = None,
    minutes: Annotated[float, typer.Option(help="No trial begins later; one that runs then is given up.")] = 20.0,
    trials: Annotated[int | None, typer.Option(help="The most trials. [default: as many as there is time for]")] = None,
    methods: Annotated[
        list[str] | None, typer.Option("--method", help="A method to choose from; repeatable. [default: all]")
    ] = None,
    backbone: Annotated[str | None, typer.Option(help="minilm, a folder, or a hub id. [default: minilm]")] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="key=value of the recipe that is not searched; repeatable.")
    ] = None,
    task: Annotated[str | None, typer.Option(help="The kind of task; guessed.")] = None,
    text: Annotated[list[str] | None, typer.Option(help="The text column; twice for a pair.")] = None,
    label: Annotated[str | None, typer.Option(help="The column to learn.")] = None,
    workers: Annotated[int, typer.Option(help="Trials at the same time, each in a fresh process; 0: all in one.")] = 1,
    ray: Annotated[
        str | None, typer.Option(help="Work on a Ray cluster: local, auto (the one that runs here) or host:port.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the proposals.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on, after a kill or for more minutes.")] = False,
    json: show.Json = False,
) -> None:
    """Choose method and settings within a budget of bytes and latency; write the best adapter and a report.

    Example: attentune search reviews.csv --budget 64KB --latency 1.1x --minutes 20 --output sentiment

    Settings that do not fit are never trained; trials that fall behind are given up early. The adapter folder gets
    search.json and search.html beside its usual files.
    """
    from transformers.utils import logging

    try:
        from attentune.search.search import search
    except ModuleNotFoundError as error:
        if error.name != "optuna":
            raise
        raise ConfigError("searching needs Optuna: pip install 'attentune[search]'") from error
    from attentune.training.recipe import parse_set

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with show.resumable("with --resume goes on with the trials that are finished"):
        found = search(
            data,
            output,
            backbone,
            budget=budget,
            latency=latency,
            minutes=minutes,
            trials=trials,
            methods=methods or (),
            workers=workers,
            ray_address=ray,
            seed=seed,
            task=task,
            text=text or (),
            label=label,
            resume=resume,
            report=(lambda line: None) if json else show.progress,
            **parse_set(changes or []),
        )
    if json:
        show.as_json({"output": str(found.folder), **found.metrics, "notes": found.notes})
        return
    result = found.metrics["search"]
    rows = [
        (t["number"], t["method"], t["bytes"], "", "failed")
        if t["failed"]
        else (t["number"], t["method"], t["bytes"], t["reached"], t["given_up"] or "")
        for t in result["trials"]
    ]
    show.table(["trial", "method", "bytes", result["metric"], "given up"], rows)
    show.scores(found.metrics)
    show.progress(f"{found.folder}: trial {result['best']['number']}, {result['best']['method']}; see search.html")
