"""The rows of a batch that one method serves, with their parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from attentune.method.method import Method

Params = Mapping[str, Tensor]
"""The tensors of one site by name, each [R, ...]."""


@dataclass(frozen=True, eq=False)
class Group:
    """Rows of a batch that share method and config: their parameters stack to [R, ...]."""

    method: Method
    cfg: Any
    names: tuple[str, ...]
    """The adapters present."""
    which: Tensor | None = None
    """[R] index into names, a row each; None: the one adapter serves every row (R = 1)."""
    rows: Tensor | None = None
    """[R] which rows of the batch; None: all of them, in order."""
    start: int | None = None
    """The first of the rows, where they follow one another: then nothing is copied to read them."""
    tensors: Mapping[Any, Params] | None = None
    """Layer -> the rows' parameters, [R, ...] or [1, ...], where a bank holds them instead of the layers."""
    prepared: bool = False
    """`tensors` are what `Method.prepare` makes of the parameters."""

    def take(self, x: Tensor) -> Tensor:
        """What the whole batch has, [B,...], for these rows: [R,...]; a view of it where they follow one another."""
        if self.rows is None:
            return x
        if self.start is None:
            return x.index_select(0, self.rows)
        return x.narrow(0, self.start, len(self.rows))

    def put(self, x: Tensor, part: Tensor, overwrite: bool = False) -> Tensor:
        """X [B,...] with `part` [R,...] in these rows; with `overwrite` x itself is lost; `part` may be `take(x)`."""
        if self.rows is None:
            return part
        if not overwrite:
            return x.index_copy(0, self.rows, part)
        if self.start is None:
            return x.index_copy_(0, self.rows, part)
        here = self.take(x)
        if not part.is_set_to(here):
            here.copy_(part)
        return x

    def members(self) -> Iterator[tuple[str, Group, Tensor | None]]:
        """(name, group of that adapter alone, its rows among the group's: None for all)."""
        for i, name in enumerate(self.names):
            mine = None if self.which is None else (self.which == i).nonzero().squeeze(-1)
            tensors = self.tensors
            if tensors is not None and mine is not None:
                # Equal tasks have equal rows: the first stands for them all.
                tensors = {
                    layer: {key: value if len(value) == 1 else value[mine[:1]] for key, value in p.items()}
                    for layer, p in tensors.items()
                }
            yield name, Group(self.method, self.cfg, (name,), tensors=tensors, prepared=self.prepared), mine


def start_of(rows: Sequence[int]) -> int | None:
    """The first of some rows, if they follow one another."""
    first = rows[0]
    return first if all(row == first + i for i, row in enumerate(rows)) else None
