"""LoReFT (Wu et al. 2024, arXiv:2404.03592), a sixth method: what a method must be, shown by one that is not built in.

h <- h + R'(W h + b - R h)     on the first positions of the text, after every block
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from attentune import Method, MethodConfig, Site, register


@dataclass
class LoreftConfig(MethodConfig):
    """LoReFT: move states inside a low-rank subspace."""

    rank: int = field(default=4, metadata={"help": "dimension of the subspace"})
    first: int = field(default=3, metadata={"help": "how many positions from the left are moved"})


def move(h: Tensor, r: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """h [B,T,D], r, w [R,k,D], b [R,k] -> [B,T,D]"""
    inside = h @ (w - r).transpose(1, 2) + b[:, None]
    return h + inside @ r


def init(cfg: LoreftConfig, site: Site, dims: Any) -> dict[str, Tensor]:
    """w = r and b = 0 leave the model unchanged."""
    r = torch.nn.init.orthogonal_(torch.empty(cfg.rank, dims.hidden))
    if cfg.init_weights is not True:
        return {"r": r, "w": torch.randn_like(r) * 0.1, "b": torch.randn(cfg.rank) * 0.1}
    return {"r": r, "w": r.clone(), "b": torch.zeros(cfg.rank)}


def edit(cfg: LoreftConfig, p: Any, x: Any, y: Tensor, frame: Any) -> Tensor:
    """After a block. Positions are counted over what may be attended to in the text, not over prompts and padding."""
    mask = frame.keys(frame.past + y.shape[1])
    real = y.new_ones(len(y), frame.past + y.shape[1]) if mask is None else mask.to(y.dtype)
    real = torch.cat([torch.zeros_like(real[:, : frame.width]), real[:, frame.width :]], 1)
    first = (real * (real.cumsum(1) <= cfg.first))[:, -y.shape[1] :]
    return y + first[..., None] * (move(y, p["r"], p["w"], p["b"]) - y)


LOREFT = register(Method("loreft", LoreftConfig, {Site.BLOCK_OUTPUT: edit}, init))
