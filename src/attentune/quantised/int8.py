"""A linear map that multiplies in int8, on a CPU: smaller, faster, and a little less exact.

Weights have a scale for each output, activations one for each token, found as they come ("dynamic quantisation"; per
token as in Yao et al. 2022, arXiv:2206.01861). A scale for a whole batch, as torch.ao.quantization has it, would let
an answer depend on its neighbours. What remains is rounding: a number on the edge between two of the 255 steps falls to
the one or the other side by the last bit of a float, and that bit may change with the form of the batch. On models of
two blocks rows mixed still equal rows alone to 1e-5; over the six of MiniLM probabilities moved by 0.014 at most.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from attentune.errors import UnsupportedError

STEPS = 127
PART = 512
"""Rows that are rounded and multiplied at a time; what is made on the way is as large as they are, not as the batch."""


class Int8Linear(nn.Module):
    """y = x W' + b with x and W rounded to int8 and summed in int32; W is [out,in]."""

    weight: Tensor
    scale: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        rounded, scale = rounded_rows(weight.detach().float())
        self.register_buffer("weight", rounded)
        self.register_buffer("scale", scale[:, 0])
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """[...,in] -> [...,out], in the dtype of x."""
        flat = x.reshape(-1, x.shape[-1]).float()
        if flat.requires_grad and torch.is_grad_enabled():
            y: Tensor = StraightThrough.apply(flat, self.weight, self.scale, self.bias)
        else:
            y = scaled_product(flat, self.weight, self.scale, self.bias)
        return y.to(x.dtype).unflatten(0, x.shape[:-1])


class StraightThrough(torch.autograd.Function):
    """The product forward; backward as if nothing had been rounded but the weight.

    The rounding of x has no slope. To pass over it is the straight-through estimator (Bengio et al. 2013,
    arXiv:1308.3432). Nothing is kept for the backward pass beside the weight.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight, scale)
        return scaled_product(x, weight, scale, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        weight, scale = ctx.saved_tensors
        return (grads[0] * scale) @ weight.to(grads[0].dtype), None, None, None


def scaled_product(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """In float, of x [N,in] and weight [out,in] in int8 with scale [out]; bias [out] -> [N,out]"""
    y = x.new_empty(len(x), len(weight))
    for part, out in zip(x.split(PART), y.split(PART), strict=True):
        rounded, scale_x = rounded_rows(part)
        torch.mul(product(rounded, weight), scale_x, out=out).mul_(scale)
        if bias is not None:
            out.add_(bias)
    return y


def rounded_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """[N,D] -> int8 [N,D] and the scales [N,1] that take them back; a row of zeros stays zero."""
    scale = x.abs().amax(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / STEPS
    # Into a fresh tensor: torch 2.13 leaves the product unwritten where a dimension of size 1 has an odd stride.
    return torch.empty(x.shape, dtype=torch.int8, device=x.device).copy_((x / scale).round_()), scale


def product(x: Tensor, w: Tensor) -> Tensor:
    """[N,D] and [M,D] in int8 -> x w' [N,M] in int32."""
    # The one int8 product of torch that gives the sums themselves, so that every row can have a scale of its own.
    return torch.ops.aten._int_mm(x, w.T)


def exact_here(width: int = 512) -> bool:
    """Whether the product is exact with the largest numbers; on a few CPUs without VNNI pairs of them overflow."""
    signs = torch.tensor([1, -1]).repeat(width // 2).to(torch.int8) * STEPS
    x = torch.stack([signs, signs.abs(), -signs.abs()])
    return bool(product(x, x).equal(x.int() @ x.int().T))


def check(model: nn.Module) -> None:
    """Whether a backbone can multiply in int8 where it is.

    Raises:
        UnsupportedError: it is not on a CPU, or on one whose int8 products are not exact.
    """
    if (found := next(model.parameters()).device.type) != "cpu":
        raise UnsupportedError(
            f"int8 is for CPUs, and the backbone is on {found}; nf4 or a dtype of bfloat16 helps there"
        )
    if not exact_here():
        raise UnsupportedError(
            "the int8 products of this CPU overflow; nf4 or a dtype of bfloat16 is the smaller backbone here"
        )
