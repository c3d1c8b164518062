"""PASTA: special-token adaptation (Yang, Huang, Zhou, Chen, EACL 2023, arXiv:2210.04382).

    h[b, t] <- h[b, t] + dropout(e[s])     for t the s-th special token of row b, before every block

The edit enters attention and residual alike; every token sees it through the attention to special tokens. One vector
per occurrence and block: [CLS], first [SEP], second [SEP]; RoBERTa's pairs have four.

Where the authors' code differs: it knows BERT's ids 101 and 102 only, and counts special tokens on the first row of
the batch; rows with other counts get vectors on wrong tokens. Here tokens are counted row by row, and only where the
mask is 1. Its start is N(0, 0.02) (`init_weights="paper"`), ours is 0, the unchanged model.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from attentune.dropout import dropout
from attentune.errors import ConfigError, UnsupportedError
from attentune.method import Dims, Frame, Method, MethodConfig, Params, Site


@dataclass
class PastaConfig(MethodConfig):
    """PASTA: one vector per special token and block."""

    slots: int = field(
        default=4,
        metadata={
            "help": "S: how many special tokens of a row get a vector (BERT pairs 3, RoBERTa pairs 4)",
            "search": (2, 3, 4),
        },
    )
    special_ids: list[int] | None = field(
        default=None, metadata={"help": "ids of the special tokens; default: the architecture's"}
    )
    dropout: float = field(default=0.1, metadata={"help": "dropout on the vectors, elementwise, in training"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.slots < 1:
            raise ConfigError(f"slots is at least 1, not {self.slots}")


def one_hot(special: Tensor, slots: int) -> Tensor:
    """Special [B,T] bool -> [B,T,S]: the s-th special token of a row, counted from the left, has a one at s.

    Ordinary tokens, and special ones beyond the S-th, have no slot.
    """
    nth = special.cumsum(1) * special
    return nth[..., None] == torch.arange(1, slots + 1, device=special.device)


def places(slot: Tensor) -> tuple[Tensor, Tensor]:
    """Slot [B,T,S] -> which of the B*T positions each slot is at, [B*S], and whether it is anywhere, [B,S,1]."""
    first = torch.arange(len(slot), device=slot.device) * slot.shape[1]
    return (slot.int().argmax(1) + first[:, None]).flatten(), slot.any(1)[..., None]


def shift_special(h: Tensor, e: Tensor, at: tuple[Tensor, Tensor], overwrite: bool = False) -> Tensor:
    """h[b,t] + e[b, slot of t].  h [B,T,D], e [R,S,D], at: see `places` -> [B,T,D]; with `overwrite` h itself is lost

    Only the special tokens are gone through; a slot that is nowhere adds zeros to its row's first position.
    """
    where, there = at
    flat = h.reshape(-1, h.shape[-1])
    return (flat.index_add_ if overwrite else flat.index_add)(0, where, (e * there).flatten(0, 1)).view_as(h)


def _places(cfg: PastaConfig, frame: Frame, length: int) -> tuple[Tensor, Tensor]:
    """`places` in the whole width of the stack: prompts in front and the architecture's padding have no slot."""

    def make() -> tuple[Tensor, Tensor]:
        if frame.tokens is None:
            raise UnsupportedError("PASTA finds special tokens by their ids: pass input_ids, not inputs_embeds")
        # Compared with each number: a tensor of the ids would be a copy to the device in every forward.
        special = torch.zeros_like(frame.tokens, dtype=torch.bool)
        for special_id in cfg.special_ids or ():
            special = special | (frame.tokens == special_id)
        mask = frame.keys(frame.past + frame.width + frame.length)
        if mask is not None:
            special = special & mask[:, -frame.length :]
        if not frame.past:
            frame.require(
                special.any(1),
                lambda row: (
                    f"PASTA acts on special tokens, and row {row} of the batch has none of {cfg.special_ids}; "
                    "tokenise with special tokens, or name their ids in special_ids"
                ),
            )
        if frame.cache is not None:
            # The running count while decoding: which of all positions so far are special.
            flags = special[:, None, :, None].float()
            so_far = frame.recall(flags, flags)[0][:, 0, :, 0].bool()
            slot = one_hot(so_far, cfg.slots)[:, -frame.length :]
        else:
            slot = one_hot(special, cfg.slots)
        return places(torch.nn.functional.pad(slot, (0, 0, frame.width, length - frame.width - frame.length)))

    return frame.once(f"places {length}", make)


def resolve(cfg: PastaConfig, dims: Dims) -> None:
    """Fill in the architecture's special tokens."""
    if cfg.special_ids is not None:
        return
    named = [getattr(dims.config, s, None) if isinstance(s, str) else s for s in dims.specials]
    ids: list[Any] = [i for one in named if one is not None for i in (one if isinstance(one, list) else [one])]
    if not ids:
        raise UnsupportedError(
            f"PASTA needs special tokens, and {dims.config.model_type} names none; "
            "architectures that do: BERT-like encoders, ModernBERT, Longformer, BigBird, BART; or set special_ids"
        )
    cfg.special_ids = sorted(set(ids))


def init(cfg: PastaConfig, site: Site, dims: Dims) -> dict[str, Tensor]:
    """{"shift": [S,D]}"""
    start = torch.zeros(cfg.slots, dims.hidden)
    return {"shift": start if cfg.init_weights is True else start.normal_(std=0.02)}


def edit(cfg: PastaConfig, p: Params, x: Tensor, y: Tensor, frame: Frame) -> Tensor:
    """Before a block."""
    at, e = _places(cfg, frame, y.shape[1]), p["shift"]
    if frame.training and cfg.dropout:
        e = dropout(e.expand(len(y), -1, -1), cfg.dropout)
    return shift_special(y, e, at, frame.fresh)


METHOD = Method("pasta", PastaConfig, {Site.BLOCK_INPUT: edit}, init, remembers=True, resolve=resolve)
