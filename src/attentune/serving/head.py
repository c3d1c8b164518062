"""The head of a task in the bank: the last numbers of its row, or the backbone's own words for the classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from attentune.errors import StoreError, UnsupportedError
from attentune.heads import HeadConfig, States
from attentune.method import MethodConfig
from attentune.serving.shelf import PREFIX


@dataclass(frozen=True)
class Head:
    """One linear layer, weight [C,D] then bias [C]; or, for classes by words in a gap, nothing of its own.

    Tasks with equal heads (but for the numbers) are answered together.
    """

    method: str = field(compare=False)
    kind: str
    pooling: str
    num_labels: int
    width: int
    """D."""
    words: tuple[int, ...] = ()
    mask: int | None = None

    @classmethod
    def of(cls, config: MethodConfig, width: int) -> Head:
        """The head of an adapter's config, on states of `width` numbers.

        Raises:
            UnsupportedError: it has none.
        """
        method = type(config).method
        if config.head is None or method is None:
            raise UnsupportedError(
                "the bank serves tasks with a head of attentune's, and this adapter has none; tasks that write are "
                "answered by `attentune predict`"
            )
        head = HeadConfig(**config.head)
        return cls(method.name, head.kind, head.pooling, head.num_labels, width, tuple(head.words), head.mask)

    @property
    def names(self) -> tuple[str, ...]:
        """Its tensors in the file."""
        place = f"{PREFIX}heads.head_{self.method}"
        return () if self.kind == "masked" else (f"{place}.out_weight", f"{place}.out_bias")

    def row(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The tensors of a file -> [C*D + C], float32; [0] for a head without tensors.

        Raises:
            StoreError: one is missing, has another shape, or holds a number that is not finite.
        """
        if not self.names:
            return torch.zeros(0)
        weight, bias = (tensors.get(name) for name in self.names)
        if weight is None or bias is None:
            raise StoreError(f"the adapter has no head: wanted are the tensors {', '.join(self.names)}")
        wanted, found = [[self.num_labels, self.width], [self.num_labels]], [list(weight.shape), list(bias.shape)]
        if found != wanted:
            raise StoreError(
                f"the adapter's head does not have the {self.num_labels} outputs that its config names on the "
                f"backbone's width {self.width}: it is {found[0]} and {found[1]}"
            )
        row = torch.cat([weight.float().flatten(), bias.float()])
        if not bool(row.isfinite().all()):
            raise StoreError("the adapter's head holds numbers that are not finite")
        return row

    def answer(self, rows: Sequence[Tensor], at: Tensor | None, states: States) -> Tensor:
        """The heads of rows `at` of the batch, None for all -> logits [R,C] or [R,T,C]."""
        if self.kind == "masked":
            assert self.mask is not None
            return states.scored(self.words, self.mask, at).float()
        x = (states.of(at) if self.kind == "token" else states.pooled(self.pooling, at)).float()
        alone = all(row is rows[0] for row in rows)
        flat = rows[0][None] if alone else torch.stack(list(rows))
        weight = flat[:, : -self.num_labels].unflatten(1, (self.num_labels, -1))
        bias = flat[:, -self.num_labels :]
        if alone:
            return torch.nn.functional.linear(x, weight[0], bias[0])
        if self.kind == "token":
            return torch.baddbmm(bias[:, None], x, weight.transpose(1, 2))
        return torch.baddbmm(bias[:, None], x[:, None], weight.transpose(1, 2)).squeeze(1)
