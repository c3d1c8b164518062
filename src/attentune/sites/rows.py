"""Which adapter serves which row of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from attentune.errors import UnsupportedError
from attentune.method import Group, MethodConfig, start_of

BASE = "__base__"
"""The name of no adapter: such a row gets the backbone's own answer."""


@dataclass
class RowRequest:
    """One name a row, as asked for by `adapter_names`, and the configs behind the names."""

    names: tuple[str, ...]
    configs: Mapping[str, MethodConfig]
    _groups: dict[tuple[int, torch.device], tuple[Group, ...]] = field(
        default_factory=lambda: dict[tuple[int, torch.device], tuple[Group, ...]]()
    )

    @classmethod
    def of(cls, names: Sequence[str], configs: Mapping[str, MethodConfig]) -> RowRequest:
        """Raises:
        UnsupportedError: a name that is not loaded.
        """
        unknown = sorted(set(names) - set(configs) - {BASE})
        if unknown:
            raise UnsupportedError(f"no such adapter: {unknown}; loaded are {sorted(configs)} (and {BASE!r})")
        return cls(tuple(names), dict(configs))

    @classmethod
    def given(cls, names: Sequence[str], groups: tuple[Group, ...], device: torch.device) -> RowRequest:
        """A request whose groups are made already, by a bank."""
        return cls(tuple(names), {}, {(len(names), device): groups})

    def per_row(self, batch: int) -> tuple[str, ...]:
        """One name for each of `batch` rows; a multiple of the request repeats every row (beam search).

        Raises:
            UnsupportedError: the batch is no multiple of the request.
        """
        if not self.names or batch % len(self.names):
            raise UnsupportedError(
                f"adapter_names has one name a row: {len(self.names)} names were given for {batch} rows"
            )
        times = batch // len(self.names)
        return tuple(name for name in self.names for _ in range(times))

    def groups(self, batch: int, device: torch.device) -> tuple[Group, ...]:
        """Rows of equal method and config together; base rows belong to no group."""
        if (batch, device) not in self._groups:
            self._groups[batch, device] = self._make(self.per_row(batch), device)
        return self._groups[batch, device]

    def _make(self, names: tuple[str, ...], device: torch.device) -> tuple[Group, ...]:
        members: dict[tuple[str, str], list[int]] = {}
        for row, name in enumerate(names):
            if name != BASE:
                cfg = self.configs[name]
                members.setdefault((type(cfg).__name__, cfg.key()), []).append(row)
        groups: list[Group] = []
        for rows in members.values():
            present = tuple(dict.fromkeys(names[row] for row in rows))
            cfg = self.configs[present[0]]
            method = type(cfg).method
            assert method is not None
            whole = len(rows) == len(names)
            single = len(present) == 1
            which = None if single else torch.tensor([present.index(names[row]) for row in rows], device=device)
            at = None if whole else torch.tensor(rows, device=device)
            groups.append(Group(method, cfg, present, which, at, None if whole else start_of(rows)))
        return tuple(groups)
