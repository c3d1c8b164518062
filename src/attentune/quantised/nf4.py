"""A linear map that keeps its weight in 4 bits, on a CPU or a GPU.

NormalFloat (Dettmers et al. 2023, arXiv:2305.14314, section 3 and appendix E): 64 numbers share a scale, their largest
absolute value, and each is the nearest of 16 levels, quantiles of a normal distribution: 4.5 bits a number. A product
is made in the numbers of x, from a weight that is unpacked for it and let go again, so that no answer depends on its
neighbours.

Of our own, since bitsandbytes, where it is installed, adds a second to the start of every process (peft imports it),
and on a CPU its layer repacks the weight for products that have no backward. The bits are the same as those of 0.50.2.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

BLOCK = 64
"""Numbers that share a scale."""
TAIL = (1 / 32 + 1 / 30) / 2
"""What is cut off on either side, for a normal distribution has no last quantile."""


class NF4Linear(nn.Module):
    """y = x W' + b with W [out,in] in 4 bits."""

    weight: Tensor
    """Two numbers a byte, the first in the upper half: [blocks,32], int8, for T5 turns its states into a weight's dtype
    unless that is int8."""
    scale: Tensor
    """[blocks,1]"""
    pairs: Tensor
    """The two levels that a byte stands for: [256,2]."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        found = levels().to(weight.device)
        packed, scale = pack(weight.detach().float(), found)
        self.register_buffer("weight", packed.view(torch.int8))
        self.register_buffer("scale", scale)
        self.register_buffer("pairs", torch.cartesian_prod(found, found))
        self.shape = weight.shape
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """[...,in] -> [...,out], in the dtype of x."""
        y: Tensor = Unpacked.apply(x, self)
        return y

    def unpacked(self, dtype: torch.dtype) -> Tensor:
        """W [out,in]."""
        numbers = nn.functional.embedding(self.weight.view(torch.uint8).int(), self.pairs).flatten(1).mul_(self.scale)
        return numbers.flatten()[: self.shape.numel()].view(self.shape).to(dtype)


class Unpacked(torch.autograd.Function):
    """The product, whose backward unpacks the weight once more instead of keeping it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: NF4Linear) -> Tensor:
        ctx.layer = layer
        return nn.functional.linear(x, layer.unpacked(x.dtype), layer.bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] @ ctx.layer.unpacked(grads[0].dtype), None


def levels() -> Tensor:
    """The 16 levels from -1 to 1: eight quantiles above zero, seven below, and zero itself."""
    above, below = (
        torch.special.ndtri(torch.linspace(1 - TAIL, 0.5, count + 1, dtype=torch.float64)[:-1]) for count in (8, 7)
    )
    found = torch.cat((-below, torch.zeros(1, dtype=torch.float64), above.flip(0)))
    return (found / found[-1]).float()


def pack(weight: Tensor, found: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers [...] to the nearest levels: uint8 [blocks,32] and scales [blocks,1]; a block of zeros stays zero."""
    flat = weight.flatten()
    blocks = nn.functional.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)
    scale = blocks.abs().amax(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    nearest = torch.bucketize(blocks / scale, (found[1:] + found[:-1]) / 2).to(torch.uint8)
    return nearest[:, 0::2] << 4 | nearest[:, 1::2], scale
