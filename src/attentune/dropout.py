"""Dropout of what a method reads or adds, for training."""

import torch
from torch import Size, Tensor
from torch.nn import functional as F


def dropout(x: Tensor, p: float) -> Tensor:
    """Each number of x 0 with probability p, else x / (1 - p).

    torch's own draws a float for every number on a CPU, which takes a tenth of the training step of a small encoder,
    and keeps it for the backward pass. Here 16 bits of one 64-bit draw decide, and a byte is kept.
    """
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(x, p)
    # As bytes: torch makes numbers of them four times as fast as of flags.
    return x * (1 / (1 - p)) * kept(x.shape, p, x.device).view(torch.uint8)


def kept(shape: Size, p: float, device: torch.device) -> Tensor:
    """Bool [*shape], each True with probability 1 - p, on a CPU to 2**-16; from torch's generator of the device."""
    if device.type != "cpu" or torch.compiler.is_compiling():
        return torch.rand(shape, device=device) >= p
    count = shape.numel()
    bits = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    least = min(round(p * 2**16), 2**16 - 1) - 2**15
    return (bits[:count] >= least).view(shape)
