"""Fan-out: rows that are equal up to a block run as one row up to there, and as rows of their own from there on.

One text asked of many tasks has one embedding, and one state for as long as no task's adapter has edited anything.
"""

from __future__ import annotations

import inspect
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from attentune.method import Group

if TYPE_CHECKING:
    from attentune.sites.stack import Stack

PER_ROW = (
    "attention_mask", "position_bias", "position_ids", "position_embeddings", "is_index_masked", "is_index_global_attn",
)  # fmt: skip
"""The arguments of blocks that have a row for each row of the batch (or one for all)."""


@dataclass(frozen=True, eq=False)
class Fan:
    """How a narrow batch of N rows becomes one of B."""

    block: int
    """The first block that runs on B rows, at least 1."""
    rows: Tensor
    """[B] which of the N rows each one is until then."""
    groups: tuple[Group, ...]
    """The groups of the B rows."""
    narrow: int
    """N, less than B."""

    def spread(self, value: Any) -> Any:
        """N rows -> B rows; what has not N rows stays as it is."""
        if isinstance(value, tuple):
            return tuple(self.spread(part) for part in value)
        if torch.is_tensor(value) and value.dim() > 1 and len(value) == self.narrow:
            return value.index_select(0, self.rows)
        return value


@dataclass(eq=False)
class Joint:
    """The place between two blocks of a stack where a batch may fan out; a bound method, which deepcopy rebinds."""

    stack: Stack
    index: int

    def leaves(self, block: nn.Module, args: tuple[Any, ...], out: Any) -> Any:
        """What leaves the block before."""
        fan, frame = self.stack.fan, self.stack.frame
        if fan is None or frame is None or fan.block != self.index:
            return None
        picked = {name: fan.spread(getattr(frame, name)) for name in ("tokens", "mask", "source")}
        more: Any = picked
        self.stack.frame = replace(frame, groups=fan.groups, batch=len(fan.rows), seen={}, memo={}, views={}, **more)
        return fan.spread(out)

    def enters(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What every block from there on is given besides the states."""
        fan = self.stack.fan
        if fan is None or self.index < fan.block:
            return None
        names = list(inspect.signature(block.forward).parameters)
        given = [fan.spread(value) if name in PER_ROW else value for name, value in zip(names, args, strict=False)]
        return tuple(given), {key: fan.spread(value) if key in PER_ROW else value for key, value in kwargs.items()}


@contextmanager
def fanned(stack: Stack, fan: Fan) -> Generator[None]:
    """The batch that runs inside is narrow and fans out in this stack."""
    stack.joint()
    stack.fan = fan
    try:
        yield
    finally:
        stack.fan = None
