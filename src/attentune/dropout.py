"""Dropout of what a method reads or adds, for training."""

import torch
from torch import Size, Tensor
from torch.nn import functional as F

BITS = 16
"""Random bits a number: the probability is right to 2**-17."""


def dropout(x: Tensor, p: float) -> Tensor:
    """Each number of x 0 with probability p, else x / (1 - p).

    torch's own draws a float for every number on a CPU, which takes a tenth of the training step of a small encoder,
    and keeps it for the backward pass. Here 16 bits of one 64-bit draw decide, and a byte is kept.
    """
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(x, p)
    return x * (1 / (1 - p)) * kept(x.shape, p)


def kept(shape: Size, p: float) -> Tensor:
    """Bool [*shape], each True with probability 1 - p; from torch's generator of the CPU."""
    count, values = shape.numel(), 2**BITS
    draws = torch.empty(-(-count * BITS // 64), dtype=torch.int64).random_(-(2**63), None)
    least = min(round(p * values), values - 1) - values // 2
    return (draws.view(torch.int16)[:count] >= least).view(shape)
