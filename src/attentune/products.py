"""Products with few rows or columns, in the layouts in which they are fast, forward and backward."""

from typing import Any

import torch
from torch import Tensor


def narrow(x: Tensor, a: Tensor) -> Tensor:
    """X [B,T,i], a [R,r,i] -> [R,r,T], or [1,r,B*T] for one adapter.

    A few rows times X^T: the library has faster kernels for it than for X times a few columns.
    """
    x = x.reshape(len(a), -1, x.shape[-1])
    if torch.is_grad_enabled() and not _autocast(x):
        return _Narrow.apply(a, x)  # pyright: ignore[reportReturnType]
    return torch.bmm(a, x.transpose(1, 2))


class _Narrow(torch.autograd.Function):
    """a X^T whose gradient for X lies in memory as X does; torch's own lies across, and what reads it next is slow."""

    @staticmethod
    def forward(a: Tensor, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return torch.bmm(a, x.transpose(1, 2))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        a, x = ctx.saved_tensors
        for_a, for_x = ctx.needs_input_grad
        return torch.bmm(grad, x) if for_a else None, torch.bmm(grad.transpose(1, 2), a) if for_x else None


def _autocast(x: Tensor) -> bool:
    return x.device.type != "meta" and torch.is_autocast_enabled(x.device.type)


def add_product(y: Tensor, left: Tensor, right: Tensor, overwrite: bool = False) -> Tensor:
    """Y [B,T,o] + left [R,n,k] right [R,k,o] with R n = B T, R = 1 or B -> [B,T,o]; with `overwrite` y itself is lost.

    One pass over y. Also under autocast in y's own precision, as a sum would be: y may be a residual stream.
    """
    flat = y.reshape(len(right), -1, y.shape[-1])
    if not _autocast(y):
        return (flat.baddbmm_ if overwrite else flat.baddbmm)(left, right).view_as(y)
    with torch.autocast(y.device.type, enabled=False):
        return flat.baddbmm(left.to(y.dtype), right.to(y.dtype)).view_as(y)
