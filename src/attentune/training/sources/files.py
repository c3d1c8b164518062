"""Prompts from elsewhere -> [m,E]: the authors' `.pt`, a safetensors file, an adapter folder.

The authors of ATTEMPT publish a source prompt as what `torch.save` makes of its one parameter [m,E]. Such a file is a
pickle; it is read with `weights_only=True`, which builds tensors and runs nothing.
"""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from attentune import store
from attentune.errors import StoreError, UnsupportedError

PICKLES = (".pt", ".pth", ".bin")


def read_prompt(path: str | Path) -> Tensor:
    """The one prompt [m,E] of a .pt or .safetensors file, in float32.

    Raises:
        StoreError: the file holds something else, or more than tensors.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise StoreError(f"no file {path}")
    if file.suffix in PICKLES:
        return _only_matrix(_unpickled(file), str(path))
    if file.suffix == ".safetensors":
        try:
            return _only_matrix(load_file(file), str(path))
        except SafetensorError as error:
            raise StoreError(f"{path} is no safetensors file: {error}") from error
    raise StoreError(f"a prompt is read from {', '.join(PICKLES)}, .safetensors or an adapter folder; found {path}")


def _unpickled(file: Path) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, TypeError, AttributeError) as error:
        raise StoreError(f"{file} holds more than tensors or is damaged; only tensors are read") from error


def _only_matrix(found: Any, where: str) -> Tensor:
    if isinstance(found, Mapping):
        tensors = list(cast("Mapping[str, Any]", found).values())
        if len(tensors) != 1:
            raise StoreError(f"{where} holds {len(tensors)} tensors, wanted one prompt of shape [rows, width]")
        found = tensors[0]
    if not isinstance(found, Tensor) or found.dim() != 2 or not found.is_floating_point() or not found.numel():
        what = f"a tensor {list(found.shape)} of {found.dtype}" if isinstance(found, Tensor) else type(found).__name__
        raise StoreError(f"{where} holds {what}, wanted one prompt of shape [rows, width] in floating point")
    prompt = found.detach().float()
    if not bool(prompt.isfinite().all()):
        raise StoreError(f"{where} holds numbers that are not finite")
    return prompt


def source_of_adapter(stored: store.Stored) -> Tensor:
    """The prompt [m,E] of an adapter that is a plain prompt.

    Raises:
        UnsupportedError: it is of another method, or mixes sources, so that its own prompt does not stand alone.
    """
    config = stored.config
    if stored.card.method != "attempt":
        raise UnsupportedError(
            f"a source is a prompt, made by attempt; {stored.folder.name} is of {stored.card.method}"
        )
    if config["attention"] != "none" and config["sources"]:
        raise UnsupportedError(
            f"{stored.folder.name} mixes {config['sources']} source prompts, so that its own does not stand alone; "
            "wanted one trained with attention = 'none' (`attentune sources train`)"
        )
    tensors = load_file(stored.folder / store.WEIGHTS)
    prompts = next(value for key, value in tensors.items() if key.endswith("target_prompts"))
    return prompts[config["task"]].float()
