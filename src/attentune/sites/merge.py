"""Adding a change to a linear host's weight, and taking it back bit for bit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from attentune.errors import UnsupportedError


@dataclass(frozen=True)
class Kept:
    """The part of the host's weight [out,in] and bias [out] before anything was added."""

    weight: Tensor
    bias: Tensor | None


def weight_of(host: nn.Module, part: tuple[int, int]) -> tuple[Tensor, Tensor | None]:
    """Views of the i-th of n parts of a linear map: weight [out,in], bias [out].

    Raises:
        UnsupportedError: the host is no plain linear map (a quantised one, say).
    """
    if not isinstance(host, (nn.Linear, Conv1D)) or not host.weight.dtype.is_floating_point:
        raise UnsupportedError(
            f"{type(host).__name__} cannot be merged into; merging needs torch.nn.Linear or transformers' Conv1D"
        )
    weight = host.weight.data.T if isinstance(host, Conv1D) else host.weight.data
    i, n = part
    whole: Any = host.bias
    bias = None if whole is None else whole.data.chunk(n)[i]
    return weight.chunk(n, 0)[i], bias


@torch.no_grad()
def add(
    host: nn.Module,
    part: tuple[int, int],
    weight: Tensor,
    bias: Tensor | None,
    kept: Kept | None,
    safe: bool,
    site: str,
) -> Kept:
    """Add weight [out,in] and bias [out] in place; returns what stood there first.

    Raises:
        UnsupportedError: the change has a bias and the host has none.
        ValueError: `safe` and the sum is not finite; the host is untouched.
    """
    w, b = weight_of(host, part)
    if bias is not None and b is None:
        raise UnsupportedError(
            f"the {site} projection has no bias to merge one into; train with biases=False to merge on this backbone"
        )
    before = kept or Kept(w.clone(), None if b is None else b.clone())
    # Summed in the adapter's precision, rounded once.
    new_w = (w.to(weight.dtype) + weight).to(w.dtype)
    new_b = None if bias is None or b is None else (b.to(bias.dtype) + bias).to(b.dtype)
    if safe and not (torch.isfinite(new_w).all() and (new_b is None or torch.isfinite(new_b).all())):
        raise ValueError(
            f"NaNs detected in the merged weights of the {site} projection; the adapter seems to be broken"
        )
    w.copy_(new_w)
    if new_b is not None and b is not None:
        b.copy_(new_b)
    return before


def restore(host: nn.Module, part: tuple[int, int], kept: Kept) -> None:
    """Put the kept weight back."""
    w, b = weight_of(host, part)
    w.copy_(kept.weight)
    if b is not None and kept.bias is not None:
        b.copy_(kept.bias)
