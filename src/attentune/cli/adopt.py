"""`attentune adopt`."""

from pathlib import Path
from typing import Annotated

import typer

from attentune.cli import show


def adopt_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A LoRA adapter that peft has saved.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The adapter folder to write.")],
    label: Annotated[list[str], typer.Option(help="The classes, in the order of the head's outputs; repeatable.")],
    backbone: Annotated[str | None, typer.Option(help="Another place to load the adapter's base from.")] = None,
    task: Annotated[str, typer.Option(help="classification, pair or tagging.")] = "classification",
    json: show.Json = False,
) -> None:
    """Turn a LoRA adapter of peft into an adapter folder that batches, banks and servers hold beside all others.

    Example: attentune adopt lora-sentiment --output sentiment --label negative --label positive
    """
    from attentune import store
    from attentune.adopt import adopt

    store.tell_replaced(store.check_writable(output), show.progress, own=folder)
    pair = task == "pair"
    written = adopt(folder, output, label, backbone, "classification" if pair else task, pair)
    if json:
        show.as_json({"output": str(written), "labels": label})
    else:
        show.progress(f"{written}: an adapter folder with {len(label)} classes")
