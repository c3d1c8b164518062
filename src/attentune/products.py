"""Products that are added to what is there already: one pass over it."""

import torch
from torch import Tensor


def add_product(y: Tensor, left: Tensor, right: Tensor, overwrite: bool = False) -> Tensor:
    """Y [B,T,o] + left [R,n,k] right [R,k,o] with R n = B T, R = 1 or B -> [B,T,o]; with `overwrite` y itself is lost.

    Also under autocast in y's own precision, as a sum would be: y may be a residual stream.
    """
    flat = y.reshape(len(right), -1, y.shape[-1])
    if not torch.is_autocast_enabled(y.device.type):
        return (flat.baddbmm_ if overwrite else flat.baddbmm)(left, right).view_as(y)
    with torch.autocast(y.device.type, enabled=False):
        return flat.baddbmm(left.to(y.dtype), right.to(y.dtype)).view_as(y)
