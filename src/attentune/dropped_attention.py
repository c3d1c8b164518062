"""Attention of a few dimensions that drops weights, for training."""

from typing import Any

import torch
from torch import Tensor

from attentune.dropout import kept


def dropped_attention(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None, p: float) -> Tensor:
    """dropout(softmax(q k' / sqrt(w))) v, each weight 0 with probability p, else over 1 - p -> [B,h,Tq,e]

    q [B,h,Tq,w], k [B,h,Tk,w], v [B,h,Tk,e], allowed [B|1,1,Tq|1,Tk] bool. What may attend to nothing gets zeros.

    PyTorch's attention keeps three numbers a weight for the backward pass when it drops some; here a byte is kept, and
    the weights are made again. In float32 at least, as there.
    """
    keep = kept(torch.Size((*q.shape[:3], k.shape[2])), p, q.device).view(torch.uint8)
    with torch.autocast(q.device.type, enabled=False):
        q, k, wide = (x.float() if x.dtype in (torch.float16, torch.bfloat16) else x for x in (q, k, v))
        q = q * q.shape[-1] ** -0.5
        if allowed is None:
            out: Any = _Dropped.apply(q, k, wide, keep, None)
        else:
            some = allowed.any(-1, keepdim=True)
            bias = torch.zeros_like(allowed, dtype=q.dtype).masked_fill(~allowed & some, -torch.inf)
            out = _Dropped.apply(q, k, wide, keep, bias)
            out = out.masked_fill(~some, 0.0)
        return (out / (1 - p)).to(v.dtype)


class _Dropped(torch.autograd.Function):
    """(keep * softmax(q k' + bias)) v; keep and bias get no gradient."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        q: Tensor, k: Tensor, v: Tensor, keep: Tensor, bias: Tensor | None
    ) -> Tensor:
        return _product(_weights(q, k, bias).mul_(keep), v)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(*inputs, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        q, k, v, keep, bias, out = ctx.saved_tensors
        weights = _weights(q, k, bias)
        # w_j (g_j - sum_i w_i g_i), g = keep * (grad v'); the sum is grad . out.
        scores = (grad @ v.transpose(-1, -2)).mul_(keep).sub_((grad * out).sum(-1, keepdim=True)).mul_(weights)
        for_v = _product(weights.mul_(keep).transpose(-1, -2), grad)
        return _product(scores, k), _product(scores.transpose(-1, -2), q), for_v, None, None


def _weights(q: Tensor, k: Tensor, bias: Tensor | None) -> Tensor:
    scores = q @ k.transpose(-1, -2)
    return (scores if bias is None else scores.add_(bias)).softmax(-1)


def _product(square: Tensor, few: Tensor) -> Tensor:
    """Square [...,n,m], few [...,m,e] -> [...,n,e], a few rows times the transpose, as in `products.narrow`."""
    return (few.transpose(-1, -2).contiguous() @ square.transpose(-1, -2)).transpose(-1, -2)
