"""New sources for a library: trained on a task, or read from a file or an adapter folder."""

import shutil
from pathlib import Path
from typing import Any, cast

from torch import nn

from attentune import store
from attentune.backbones import fingerprint, hub_id, load_backbone, revision
from attentune.card import Backbone
from attentune.errors import StoreError
from attentune.tasks import Data
from attentune.tasks.sources import Source
from attentune.training.sources.files import read_prompt, source_of_adapter
from attentune.training.sources.library import Library, SourceCard, card_for
from attentune.training.train import train


def train_source(
    data: Source | Data,
    library: str | Path,
    name: str,
    backbone: str | None = None,
    **options: Any,
) -> SourceCard:
    """Train a plain prompt (prompt tuning: no sources, no attention) and keep it; the head of its task is not needed.

    `options` are those of `train`: recipe, resume, report, columns, keys of a recipe. A kill leaves
    `LIBRARY/.NAME.training`, and `resume=True` goes on from there.

    Raises:
        AttentuneError: as `train` does; ConfigError: the name is taken.
    """
    home = Library(library)
    home.check_free(name)
    work = home.folder / f".{name}"
    home.folder.mkdir(parents=True, exist_ok=True)
    plain: dict[str, Any] = {**options, "attention": "none", "sources": 0}
    result = train(data, "attempt", work, backbone, **plain)
    card = _keep_adapter(home, name, store.read(result.folder))
    shutil.rmtree(work)
    return card


def keep_file(path: str | Path, library: str | Path, name: str, backbone: str = "minilm") -> SourceCard:
    """Add the prompt of a .pt or .safetensors file, or of an adapter folder (which knows its backbone itself).

    Raises:
        StoreError: the file holds no prompt, or one of another width than the backbone's word embeddings.
        ConfigError: the name is taken.
    """
    home = Library(library)
    home.check_free(name)
    if Path(path).expanduser().is_dir():
        return _keep_adapter(home, name, store.read(path))
    prompt = read_prompt(path)
    base = load_backbone(backbone)
    words = cast("nn.Embedding", base.get_input_embeddings())
    width = int(words.weight.shape[1])
    if prompt.shape[1] != width:
        raise StoreError(
            f"{path} holds a prompt of width {prompt.shape[1]}; the word embeddings of {backbone} have {width}"
        )
    origin = Backbone(hub_id(backbone), fingerprint(base), revision(base))
    card = card_for(name, prompt, origin, "not known", f"read from {Path(path).name}")
    home.add(card, prompt)
    return card


def _keep_adapter(home: Library, name: str, stored: store.Stored) -> SourceCard:
    prompt = source_of_adapter(stored)
    task = f"{stored.card.task.kind}: {stored.card.columns.shown()}"
    score = stored.metrics.get("validation")
    card = card_for(name, prompt, stored.card.backbone, task, stored.recipe, score)
    home.add(card, prompt)
    return card
