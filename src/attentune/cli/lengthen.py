"""`attentune lengthen`."""

from pathlib import Path
from typing import Annotated

import typer

from attentune.cli import show


def lengthen_command(
    model: Annotated[str, typer.Argument(help="minilm, a folder, or a hub id.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The folder of the lengthened model. [default: the model's name and -TO]"),
    ] = None,
    to: Annotated[int, typer.Option(help="How many tokens it shall read.")] = 4096,
    window: Annotated[int, typer.Option(help="How many tokens a token attends to, half of them on either side.")] = 512,
    json: show.Json = False,
) -> None:
    """Turn a BERT- or RoBERTa-like encoder into a Longformer that reads long texts.

    Example: attentune lengthen minilm --to 4096

    The folder, here minilm-4096, then serves as a backbone:
    attentune train DATA --backbone minilm-4096 --set max_length=2048 --output DIR
    """
    from attentune.longformer import lengthen

    folder = lengthen(model, to, output, window)
    if json:
        show.as_json({"output": str(folder), "positions": to, "window": window})
    else:
        show.progress(
            f"{folder}: a Longformer of {to:,} positions; texts up to {window // 2 + 1} tokens read as before"
        )
