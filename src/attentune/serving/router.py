"""Which replica answers: one that has the tasks in memory, unless it is much busier than others.

    cost(replica) = requests in work + COLD * tasks of the request that are cold there

The cheapest is asked first, the next when it is full. Of equals that one comes first which the tasks' names choose
(rendezvous hashing), so that a task that is cold everywhere becomes warm in one place and not in all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

COLD = 8.0
"""What reading the row of a cold task is worth, in requests that wait."""
COLD_TASKS = "cold"
"""Under this key a replica reports its cold tasks."""


@dataclass(frozen=True)
class Load:
    """What is known of a replica."""

    id: str
    requests: int
    cold: Collection[str] | None
    """Tasks that are not in its memory; None: it has not told."""


def order(loads: Sequence[Load], tasks: Sequence[str]) -> list[int]:
    """The places of replicas, the best for a request that names these tasks first."""

    def cost(load: Load) -> tuple[float, bytes]:
        cold = len(tasks) if load.cold is None else sum(task in load.cold for task in tasks)
        return load.requests + COLD * cold, hashlib.sha256(f"{min(tasks, default='')}\0{load.id}".encode()).digest()

    return sorted(range(len(loads)), key=lambda i: cost(loads[i]))


class WarmFirst(RequestRouter):
    """Ray Serve's router by `order`; a request's first argument, if it has any, is the tasks that it names."""

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Each replica alone, the best first."""
        tasks: Sequence[str] = ()
        if pending_request is not None:
            tasks = next(iter(pending_request.args), ())
            pending_request.routing_context.should_backoff = True  # between rounds in which all were full
        return [[candidate_replicas[i]] for i in order([self._load(r) for r in candidate_replicas], tasks)]

    def _load(self, replica: RunningReplica) -> Load:
        told: dict[str, Any] = replica.routing_stats
        waiting = self.replica_queue_len_cache.get(replica.replica_id) or 0
        return Load(replica.replica_id.unique_id, waiting, told.get(COLD_TASKS))
