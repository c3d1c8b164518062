"""Sources of a library in a training run."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from attentune.card import Backbone
from attentune.errors import ConfigError, StoreError
from attentune.methods import METHODS
from attentune.predict import prompt_weights
from attentune.sites import SiteLayer
from attentune.tasks import Features, Task
from attentune.training.recipe import Recipe, method_options
from attentune.training.sources.library import Library

TENSOR = "source_prompts"


def name_sources(recipe: Recipe, library: str | Path | None, fixed: Collection[str]) -> Recipe:
    """The recipe with the names of its sources: those that it has, else all of the library.

    Length and number of sources are theirs, and they are not trained, where those options are not `fixed` by the user.

    Raises:
        ConfigError: the recipe names sources, and there is no library; the method mixes no prompts; or the sources do
            not fit each other or the recipe.
        StoreError: a source is not the one that the recipe was written with.
    """
    options = recipe.options
    if library is None:
        if options.get("source_names"):
            raise ConfigError(f"the recipe mixes {', '.join(options['source_names'])}; name the library of sources")
        return recipe
    if "source_names" not in method_options(recipe.method):
        able = ", ".join(name for name in METHODS if "source_names" in method_options(name))
        raise ConfigError(f"{recipe.method} mixes no source prompts; {able} does")
    if options.get("attention") == "none":
        raise ConfigError("attention = 'none' mixes no source prompts; choose another one, or leave the sources out")
    home = Library(library)
    names = options.get("source_names") or home.names()
    cards = home.equal(names, options.get("length") if "length" in fixed else None)
    hashes = [card.sha256 for card in cards]
    for card, wanted in zip(cards, options.get("source_hashes") or hashes, strict=False):
        if card.sha256 != wanted:
            raise StoreError(
                f"the source {card.name!r} of {home.folder} is not the one that the recipe was written with"
            )
    if "sources" in fixed and options.get("sources") != len(names):
        raise ConfigError(f"sources is {options.get('sources')}, and {len(names)} are taken: {', '.join(names)}")
    found = {"sources": len(names), "length": cards[0].length, "source_names": list(names), "source_hashes": hashes}
    trained = options.get("train_sources", False) if "train_sources" in fixed else False
    return replace(recipe, options={**options, **found, "train_sources": trained})


def take_sources(recipe: Recipe, library: str | Path | None, backbone: Backbone) -> Tensor | None:
    """The prompts [K,m,E] that a recipe names; None where it names none.

    Raises:
        StoreError: a source was made on another backbone, or its file is damaged.
    """
    names = recipe.options.get("source_names")
    if library is None or not names:
        return None
    home = Library(library)
    home.check_backbone(names, backbone)
    return torch.stack([home.prompt(name) for name in names])


def put_sources(model: nn.Module, adapter: str, sources: Tensor, paper: bool = False) -> None:
    """Set the source prompts [K,m,E] of a fresh adapter.

    `paper`: its own prompt starts as the first of them, as in the authors' code.
    """
    for layer in (module for module in model.modules() if isinstance(module, SiteLayer)):
        tensors = layer.tensors(adapter)
        with torch.no_grad():
            tensors[TENSOR].copy_(sources)
            if paper:
                tensors["target_prompts"].copy_(sources[:1].expand_as(tensors["target_prompts"]))


def mean_attention(
    model: Any,
    adapter: str,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    features: Sequence[Features],
    batch_size: int,
) -> dict[str, dict[str, float]]:
    """`attention`: the mean weight of every prompt over these rows, where the method mixes prompts."""
    config: Any = model.peft_config[adapter]
    names = type(config).method.mixes(config)
    if not names:
        return {}
    several = len(model.peft_config) > 1
    rows = prompt_weights(model.eval(), tokenizer, task, features, batch_size, adapter if several else None)
    return {"attention": dict(zip(names, map(float, np.mean(rows, axis=0)), strict=True))}
