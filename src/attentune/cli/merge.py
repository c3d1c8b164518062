"""`attentune merge`: an adapter merged into a copy of its backbone, a plain transformers folder.

config.json, model.safetensors, tokenizer files     the merged backbone, for `transformers.AutoModel`; an
                                                    encoder-decoder whole, its encoder merged
head.safetensors                                    the task's head: `weight` [C,D], `bias` [C]; not for tasks that
                                                    write, whose backbone is saved with its own language head
task.json                                           labels, pooling and the rest of the task card
"""

import os
import shutil
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from attentune.cli import show
from attentune.errors import StoreError, UnsupportedError

HEAD = "head.safetensors"


def merge_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The adapter.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder of the merged model.")],
    backbone: Annotated[str | None, typer.Option(help="Another place to load the same backbone from.")] = None,
    json: show.Json = False,
) -> None:
    """Merge an adapter into a copy of its backbone: a plain transformers folder, with the head beside it.

    Example: attentune merge sentiment --output sentiment-merged
    """
    from transformers import AutoConfig

    merged = merge(folder, output, backbone)
    head = merged / HEAD
    if json:
        show.as_json({"output": str(merged), "head": str(head) if head.exists() else None})
    elif head.exists():
        parts = AutoConfig.from_pretrained(merged).is_encoder_decoder
        reader = "transformers.AutoModel" + (", of which get_encoder() reads for the head" if parts else "")
        show.progress(f"{merged}: the merged backbone ({reader}); {HEAD}: the task's head")
    else:
        show.progress(f"{merged}: the merged model with its language head")


def merge(folder: str | Path, output: str | Path, backbone: str | None = None) -> Path:
    """Write the merged model of an adapter folder, whole or not at all.

    Raises:
        UnsupportedError: the method has no merged form.
        StoreError: there is something at `output` already.
    """
    from peft import PeftModel
    from safetensors.torch import save_file

    from attentune import store
    from attentune.heads import HeadLayer
    from attentune.method import METHODS
    from attentune.model import TaskModel
    from attentune.predict import load_fitting

    stored = store.read(folder)
    method = METHODS[stored.card.method]
    if method.merge is None:
        able = ", ".join(name for name, other in METHODS.items() if other.merge is not None)
        raise UnsupportedError(f"{method.name} has no merged form, its edits are no part of any weight; {able} has one")
    if "template" in stored.card.task.to_card():
        raise UnsupportedError("an adapter with words for its classes has no head of its own to write beside the model")
    target = Path(output).expanduser().absolute()
    if target.exists() and (target.is_file() or any(target.iterdir())):
        raise StoreError(f"{output} exists; name a new folder")
    base, tokenizer = load_fitting({stored.card.name: stored}, backbone)
    writes = stored.card.task.head == "language"
    model = PeftModel.from_pretrained(cast("Any", base if writes else TaskModel(base)), str(stored.folder))
    tensors = {
        key.removeprefix("out_"): value.detach().cpu().contiguous()
        for head in model.modules()
        if isinstance(head, HeadLayer)
        for key, value in head.tensors("default").items()
    }
    cast("Any", model).merge_and_unload()
    fresh = target.with_name(f".{target.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    base.save_pretrained(fresh)
    tokenizer.save_pretrained(fresh)
    if tensors:
        save_file(tensors, fresh / HEAD)
    shutil.copy(stored.folder / store.CARD, fresh / store.CARD)
    os.replace(fresh, target)
    return target
