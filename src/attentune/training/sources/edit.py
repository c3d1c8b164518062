"""Sources put into a trained adapter, or left out of it.

The attention scores every prompt by itself, p_j . g / T, and only the softmax joins them. So leaving a source out is
the softmax over the rest, putting one in is one more column, and every other tensor stays as it is, bit for bit.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from attentune import store
from attentune.confidence import Calibration
from attentune.errors import ConfigError, UnsupportedError
from attentune.store import Stored
from attentune.training.recipe import parse_recipe
from attentune.training.sources.library import Library, digest
from attentune.training.sources.mixture import TENSOR


class _Edited:
    """What `store.write` saves: peft's two files, from memory."""

    def __init__(self, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        self.config, self.tensors = config, tensors

    def save_pretrained(self, save_directory: str, **options: Any) -> None:
        """Write adapter_config.json and adapter_model.safetensors."""
        folder = Path(save_directory)
        (folder / store.CONFIG).write_text(json.dumps(self.config, indent=2, sort_keys=True), encoding="utf-8")
        save_file(self.tensors, folder / store.WEIGHTS, metadata={"format": "pt"})


def with_sources(
    folder: str | Path,
    output: str | Path,
    add: Sequence[str] = (),
    remove: Sequence[str] = (),
    library: str | Path | None = None,
) -> Stored:
    """Write an adapter with sources of `library` added (after those that it has) and others left out.

    Every other tensor is the same, bit for bit. Scores and calibration stay behind, for they were those of another
    mixture; `recalibrate` fits them anew.

    Raises:
        UnsupportedError: the adapter mixes no source prompts.
        ConfigError: a name is not there, is there already, or no source would be left.
        StoreError: a source does not fit the adapter's backbone.
    """
    stored, target = store.read(folder), store.check_writable(output)
    config = dict(stored.config)
    if stored.card.method != "attempt" or config["attention"] == "none" or not config["sources"]:
        raise UnsupportedError(f"{stored.folder.name} mixes no source prompts, so that none can be put in or left out")
    tensors = load_file(stored.folder / store.WEIGHTS)
    key = next(key for key in tensors if key.endswith(TENSOR))
    names: list[str] = config["source_names"] or [f"source{j + 1}" for j in range(config["sources"])]
    sources = dict(zip(names, tensors[key], strict=True))
    for name in remove:
        if name not in sources:
            raise ConfigError(f"{stored.folder.name} has no source {name!r}; it has {', '.join(sources)}")
        del sources[name]
    sources |= _new(stored, library, add, taken=list(sources), like=tensors[key])
    if not sources:
        raise ConfigError("an adapter mixes at least one source; without any it would be another method: prompt tuning")
    tensors[key] = torch.stack(list(sources.values())).contiguous()
    record = {
        "sources": len(sources),
        "source_names": list(sources),
        "source_hashes": [digest(prompt) for prompt in sources.values()],
    }
    recipe = parse_recipe(stored.recipe).override({f"method.{name}": value for name, value in record.items()})
    # The calibration goes, and with it the rows that it was fitted on.
    known = {name: value for name, value in stored.metrics.get("run", {}).items() if name != "calibration_rows"}
    run = {**known, "sources_added": list(add), "sources_removed": list(remove)}
    edited = _Edited({**config, **record}, tensors)
    card = replace(stored.card, name=target.name, calibration=Calibration())
    return store.read(store.write(output, edited, card, recipe.to_toml(), {"run": run}))


def _new(
    stored: Stored, library: str | Path | None, names: Sequence[str], taken: Sequence[str], like: Tensor
) -> dict[str, Tensor]:
    """Sources to add, in the adapter's precision; `like` [K,m,E] are those that it has."""
    if not names:
        return {}
    if library is None:
        raise ConfigError(f"no library to take {', '.join(names)} from")
    double = [name for name in names if name in taken]
    if double:
        raise ConfigError(f"{stored.folder.name} mixes {', '.join(double)} already")
    home = Library(library)
    home.equal(names, int(like.shape[1]))
    home.check_backbone(names, stored.card.backbone)
    return {name: home.prompt(name).to(like.dtype) for name in names}
