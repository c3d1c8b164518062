"""A look at the served folder before each request, which keeps nobody waiting for a disk that hangs or fails."""

from __future__ import annotations

import asyncio
import logging
from functools import cached_property

from anyio import CapacityLimiter, to_thread

from attentune.errors import StorageError
from attentune.serving.registry import Registry

log = logging.getLogger("attentune.serving")

LOOKERS = 8
"""Threads that look at the folder."""
PATIENCE = 5.0
"""Seconds that a request waits for a look."""


class Freshness:
    """What other servers changed in the folder is known before a request is read.

    While a look hangs or the folder cannot be read, requests go on with what is known.
    """

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self._hanging: set[asyncio.Future[None]] = set()
        self._failure = ""

    @cached_property
    def _looking(self) -> CapacityLimiter:  # made when a loop runs
        return CapacityLimiter(LOOKERS)

    async def ensure(self) -> None:
        """Look, unless an earlier look hangs still."""
        if self._hanging:
            return
        look = asyncio.ensure_future(to_thread.run_sync(self._look, limiter=self._looking))
        done, _ = await asyncio.wait({look}, timeout=PATIENCE)
        if done:
            look.result()
            return
        # Kept, since a thread at work cannot be stopped: those that hang must not become ever more.
        self._hanging.add(look)
        look.add_done_callback(self._hanging.discard)
        log.warning("the served folder has not been read in %g s; its tasks are served as known", PATIENCE)

    def _look(self) -> None:
        try:
            self.registry.catch_up()
            self._failure = ""
        except (OSError, StorageError) as error:
            if str(error) != self._failure:  # told once
                log.warning("the served folder cannot be read, and its tasks are served as known: %s", error)
            self._failure = str(error)
