"""What the two protocols share: items -> asks -> answers, for a key that sees some of the tasks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from anyio import CancelScope, CapacityLimiter, to_thread
from starlette.requests import Request

from attentune.errors import AttentuneError, UnknownTaskError
from attentune.serving.engine import Ask, Engine
from attentune.serving.freshness import Freshness
from attentune.serving.keys import Key
from attentune.serving.limits import Limits
from attentune.serving.meters import Meters
from attentune.serving.problems import AGAIN, Refused, describe
from attentune.serving.registry import Registry, Route
from attentune.serving.versions import Served
from attentune.tasks import Answer, Task
from attentune.tasks.classify import Regression

DECISIONS = ("label", "labels", "tags", "answer", "choice")
"""The keys of an answer in which a shadow can agree or not."""
CLOSE = 0.1
"""Standard deviations of the values in training by which two numbers may differ and agree."""
READERS = 8
"""Threads that read rows from the disk."""


@dataclass
class Draw:
    """Who answers several asks of one task: drawn with the first of them."""

    active: bool = False
    """Whether a version that is on trial for a share of the asks is left out."""
    found: Route | AttentuneError | None = None

    def route(self, registry: Registry, task: str) -> Route:
        """Who answers; raises as `Registry.route`, and then every time."""
        if self.found is None:
            try:
                self.found = registry.route(task, self.active)
            except AttentuneError as error:
                self.found = error
        if isinstance(self.found, AttentuneError):
            raise self.found
        return self.found


@dataclass(frozen=True)
class Wanted:
    """One answer that a request asks for."""

    task: str
    input: Any
    abstain_at: float | None = None
    coverage: float | None = None
    attention: bool = False
    draw: Draw | None = None
    """Who answers it and others; None: it is drawn for this one alone."""


class Service:
    """A registry of tasks behind an engine."""

    def __init__(self, registry: Registry, engine: Engine, limits: Limits, meters: Meters) -> None:
        self.registry, self.engine, self.limits, self.meters = registry, engine, limits, meters
        self.ready, self.fresh = False, Freshness(registry)

    # Both are made when a loop runs. Who waits for them has no thread, and may be given up. The threads that all the
    # rest shares (lists of tasks, meters, and asks of what is in memory) are free whatever hangs here.
    @cached_property
    def reading(self) -> CapacityLimiter:
        """Rows are read from the disk, which may hang."""
        return CapacityLimiter(READERS)

    @cached_property
    def queueing(self) -> CapacityLimiter:
        """Texts become tokens: one request at a time, as there is one tokenizer."""
        return CapacityLimiter(1)

    def visible(self, key: Key, name: str) -> Served:
        """The task, if the key sees it; else it does not exist."""
        if not key.sees(name):
            raise UnknownTaskError(f"there is no task {name!r}")
        return self.registry.task(name)

    def tasks(self, key: Key) -> list[tuple[str, Served]]:
        """The tasks that the key sees, as they are now."""
        return [(name, served) for name, served in self.registry.tasks if key.sees(name)]

    def names(self, key: Key) -> list[str]:
        """Their names."""
        return [name for name, _ in self.tasks(key)]

    async def submit(self, wanted: Sequence[Wanted], key: Key) -> list[asyncio.Future[Answer]]:
        """Queue what is wanted; an unknown task or an input that does not fit fails alone, as an exception."""
        if not wanted:
            raise Refused(422, "no items; at least one is wanted")
        if len(wanted) > self.limits.max_client_batch_size:
            raise Refused(
                413, f"{len(wanted)} answers asked for; one request may ask for {self.limits.max_client_batch_size}"
            )
        failed: dict[int, Exception] = {}
        cold = any(self.registry.is_cold(task) for task in {one.task for one in wanted})
        threads = self.reading if cold else None
        asks, places, shadows = await to_thread.run_sync(self._route, wanted, key, failed, limiter=threads)
        also = [ask for _, ask, _ in shadows]
        futures = await to_thread.run_sync(self._queue, asks, also, limiter=self.queueing)
        for (heard, _, kind), unheard in zip(shadows, futures[len(asks) :], strict=False):
            self._compare(wanted[places[heard]].task, kind, futures[heard], unheard)
        found: dict[int, asyncio.Future[Answer]] = {
            i: asyncio.wrap_future(future) for i, future in zip(places, futures, strict=False)
        }
        for i, error in failed.items():
            found[i] = asyncio.get_running_loop().create_future()
            found[i].set_exception(error)
        for i, future in found.items():
            future.add_done_callback(lambda done, task=wanted[i].task: self._count(task, done))
        return [found[i] for i in range(len(wanted))]

    def _queue(self, asks: list[Ask], shadows: list[Ask]) -> list[Future[Answer]]:
        """Futures of the asks, then of their shadows, unless there is room for the asks alone."""
        try:
            return self.engine.submit([*asks, *shadows])
        except AttentuneError:
            if not shadows:
                raise
            return self.engine.submit(asks)  # Who answers unheard must not cost an answer.

    def _route(
        self, wanted: Sequence[Wanted], key: Key, failed: dict[int, Exception]
    ) -> tuple[list[Ask], list[int], list[tuple[int, Ask, Task]]]:
        """Asks, which of the wanted each is for, and (which ask, its shadow, the kind of task)."""
        asks: list[Ask] = []
        places: list[int] = []
        shadows: list[tuple[int, Ask, Task]] = []
        for i, one in enumerate(wanted):
            try:
                self.visible(key, one.task)
                route = (one.draw or Draw()).route(self.registry, one.task)
            except AttentuneError as error:
                failed[i] = error
                continue
            places.append(i)
            asks.append(Ask(route.held, one.input, one.abstain_at, one.coverage, one.attention))
            if route.unheard is not None:
                shadows.append((len(asks) - 1, Ask(route.unheard, one.input), route.held.entry.card.task))
        return asks, places, shadows

    async def each(self, wanted: Sequence[Wanted], key: Key) -> AsyncIterator[dict[str, Any]]:
        """{"index", "task", "answer"} or {"index", "task", "error"} in the order in which they are done."""
        clock = asyncio.get_running_loop().time
        end = clock() + self.limits.request_timeout_s
        given_up = CancelScope()
        submitted = asyncio.ensure_future(self._unless(given_up, wanted, key))
        try:
            futures = await asyncio.wait_for(asyncio.shield(submitted), self.limits.request_timeout_s)
            pending = [_numbered(i, future) for i, future in enumerate(futures)]
            # Not asyncio.timeout, which belongs to one task: a stream is read by another than began it.
            for done in asyncio.as_completed(pending, timeout=end - clock()):
                i, outcome = await done
                yield {"index": i, "task": wanted[i].task, **outcome}
        except TimeoutError as error:
            raise Refused(503, f"not answered within {self.limits.request_timeout_s:g} s", AGAIN) from error
        finally:
            given_up.cancel()
            submitted.add_done_callback(_withdraw)

    async def _unless(self, given_up: CancelScope, wanted: Sequence[Wanted], key: Key) -> list[asyncio.Future[Answer]]:
        """What `submit` gives. Given up it does not go on, but a thread at work cannot be stopped: that is awaited."""
        with given_up:
            return await self.submit(wanted, key)
        return []

    async def all(self, wanted: Sequence[Wanted], key: Key) -> list[dict[str, Any]]:
        """The same, in the order of what is wanted, without the numbers."""
        found = [line async for line in self.each(wanted, key)]
        return [{k: v for k, v in line.items() if k != "index"} for line in sorted(found, key=lambda x: x["index"])]

    def _count(self, task: str, done: asyncio.Future[Answer]) -> None:
        if done.cancelled():
            return
        failed = done.exception()
        (self.meters.failed if failed else self.meters.answers).labels(
            self.meters.label(task) if task in self.registry else "(unknown)"
        ).inc()

    def _compare(self, name: str, task: Task, heard: Future[Answer], unheard: Future[Answer]) -> None:
        """Count whether the shadow agrees, when both have answered."""
        left = iter((False, True))  # The second to be done counts.

        def told(_: Future[Answer]) -> None:
            if next(left) and not any(f.cancelled() or f.exception() for f in (heard, unheard)):
                same = _agree(task, heard.result(), unheard.result())
                self.meters.shadows.labels(self.meters.label(name), str(same).lower()).inc()

        heard.add_done_callback(told)
        unheard.add_done_callback(told)


async def unless_gone(request: Request, work: Awaitable[Any]) -> Any:
    """The result; what nobody waits for any more is cancelled."""
    task = asyncio.ensure_future(work)

    async def watch() -> None:
        while not await request.is_disconnected():
            await asyncio.sleep(0.1)
        task.cancel("gone")

    watcher = asyncio.create_task(watch())
    try:
        return await task
    except asyncio.CancelledError as error:
        if error.args != ("gone",):  # The process ends, and its patience has.
            raise Refused(503, "the server is shutting down", AGAIN) from None
        raise Refused(400, "the client has gone") from None
    finally:
        watcher.cancel()


def _agree(task: Task, heard: Answer, unheard: Answer) -> bool:
    if isinstance(task, Regression):
        return abs(heard["value"] - unheard["value"]) <= CLOSE * task.std
    return all(heard.get(key) == unheard.get(key) for key in DECISIONS)


def _withdraw(submitted: asyncio.Future[list[asyncio.Future[Answer]]]) -> None:
    """Cancel what nobody waits for any more."""
    if not submitted.cancelled() and submitted.exception() is None:
        for future in submitted.result():
            future.cancel()


async def _numbered(i: int, future: asyncio.Future[Answer]) -> tuple[int, dict[str, Any]]:
    try:
        return i, {"answer": await future}
    except asyncio.CancelledError:
        raise
    except Exception as error:
        return i, {"error": describe(error)}
