"""Where the rows of tasks are: hot on the device, warm in memory, cold on disk. The least recently used go first."""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Tier:
    """Rows by task, at most `limit` bytes of them (None: no limit) beside the pinned ones."""

    limit: int | None = None
    rows: OrderedDict[Hashable, Tensor] = field(default_factory=lambda: OrderedDict[Hashable, Tensor]())
    bytes: int = 0

    def get(self, key: Hashable) -> Tensor | None:
        """The row, which becomes the most recently used."""
        row = self.rows.get(key)
        if row is not None:
            self.rows.move_to_end(key)
        return row

    def put(self, key: Hashable, row: Tensor, pinned: frozenset[Hashable] | set[Hashable]) -> None:
        """Keep a row; others go while there are too many bytes."""
        self.drop(key)
        self.rows[key] = row
        self.bytes += row.nbytes
        while self.limit is not None and self.bytes > self.limit:
            oldest = next((k for k in self.rows if k != key and k not in pinned), None)
            if oldest is None:
                return
            self.drop(oldest)

    def drop(self, key: Hashable) -> None:
        """Forget a row, if it is here."""
        row = self.rows.pop(key, None)
        if row is not None:
            self.bytes -= row.nbytes


class Tiers:
    """Hot, warm and cold behind one `get`. On a CPU hot and warm are the same memory, so there is one tier only.

    `read` fetches a cold row: one read of one file. Rows never change: who holds one may go on with it after the task
    was replaced or removed.
    """

    def __init__(
        self,
        read: Callable[[Hashable], Tensor],
        device: torch.device,
        hot_bytes: int | None = None,
        warm_bytes: int | None = None,
    ) -> None:
        self.read, self.device = read, device
        self.warm = Tier(warm_bytes)
        self.hot = Tier(hot_bytes) if device.type != "cpu" else self.warm
        self.pinned: set[Hashable] = set()
        self.hits: Counter[str] = Counter()
        """Requests by the tier that answered: hot, warm, cold (on a CPU: warm, cold)."""
        self._drops = 0
        """How many tasks have gone: a row that was fetched while one went may be that one's, and is not kept."""
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> Tensor:
        """The row [N] on the device."""
        with self._lock:
            if self.hot is not self.warm and (row := self.hot.get(key)) is not None:
                self.hits["hot"] += 1
                return row
            row = self.warm.get(key)
            self.hits["cold" if row is None else "warm"] += 1
            if row is not None and self.hot is self.warm:
                return row
            drops = self._drops
        fresh = row is None
        if row is None:
            row = self.read(key)
        on_device = row.to(self.device)
        with self._lock:
            if drops == self._drops:
                self._keep(key, row if fresh else None, on_device)
        return on_device

    def put(self, key: Hashable, row: Tensor) -> None:
        """A row that was read already."""
        on_device = row.to(self.device)
        with self._lock:
            self._keep(key, row, on_device)

    def _keep(self, key: Hashable, fresh: Tensor | None, on_device: Tensor) -> None:
        if fresh is not None:
            self.warm.put(key, fresh, self.pinned)
        if self.hot is not self.warm:
            self.hot.put(key, on_device, self.pinned)

    def pin(self, key: Hashable, pinned: bool = True) -> None:
        """A pinned row stays, whatever the limits say."""
        with self._lock:
            (self.pinned.add if pinned else self.pinned.discard)(key)

    def drop(self, key: Hashable) -> None:
        """The task is gone."""
        with self._lock:
            self._drops += 1
            self.pinned.discard(key)
            self.warm.drop(key)
            self.hot.drop(key)
