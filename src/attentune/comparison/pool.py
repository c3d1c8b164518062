"""One function over many items: in this process, over processes, or over machines with Ray.

`map(function, items, workers, ray_address)` yields each result as soon as it is there, in any order. Items are taken
from their iterable only when a worker is free, so what the iterable yields may depend on the results so far.

Functions and items are sent to other processes: the function stands at the top of a module (or is a `partial` of such
a one), the items are plain values.
"""

import contextlib
import multiprocessing
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Generic, TypeVar, cast

import torch

from attentune.allocator import keep_freed_memory
from attentune.cluster import join
from attentune.errors import AttentuneError, ConfigError

Item = TypeVar("Item")
Result = TypeVar("Result")


def map(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int = 1, ray_address: str | None = None
) -> Generator[tuple[Item, Result]]:
    """(item, result) of every item, as they finish.

    With `ray_address` ("local" starts a cluster on this machine, "auto" joins the one that runs here, "host:port" joins
    another) `workers` processes of the cluster work; else `workers` processes of this machine, or this very one.

    Raises:
        ConfigError: there are no workers, or no Ray.
        AttentuneError: a worker died; what it had not finished is lost.
        Exception: whatever `function` raises.
    """
    given = iter(items)
    return drain(function, lambda: next(given, None), workers, ray_address)


def drain(
    function: Callable[[Item], Result],
    ask: Callable[[], Item | None],
    workers: int = 1,
    ray_address: str | None = None,
) -> Generator[tuple[Item, Result]]:
    """As `map`, with items that may become known only when others are finished.

    `ask` is called whenever a worker is free; None says that there is nothing to do now. It is asked again after the
    next result, and all is done when nothing is under way either.
    """
    if workers < 1:
        raise ConfigError(f"at least one worker is needed, found workers={workers}")
    if ray_address is None and workers == 1:
        while (item := ask()) is not None:
            yield item, function(item)
        return
    workplace = _Processes(function, workers) if ray_address is None else _Ray(function, workers, ray_address)
    with contextlib.closing(workplace):
        under_way: dict[Any, Item] = {}
        while True:
            while len(under_way) < workers and (item := ask()) is not None:
                under_way[workplace.start(item)] = item
            if not under_way:
                return
            for ticket, result in workplace.finished(list(under_way)):
                yield under_way.pop(ticket), result


class _Workplace(ABC, Generic[Item, Result]):
    """Where items are worked on; a ticket stands for one that is under way."""

    @abstractmethod
    def start(self, item: Item) -> Any:
        """Hand an item to a free worker -> its ticket."""

    @abstractmethod
    def finished(self, tickets: list[Any]) -> Iterator[tuple[Any, Result]]:
        """Wait for at least one of the tickets."""

    @abstractmethod
    def close(self) -> None:
        """Let the workers go; what is under way is dropped."""


class _Processes(_Workplace[Item, Result]):
    """Fresh processes (spawned: threads and CUDA do not survive a fork)."""

    def __init__(self, function: Callable[[Item], Result], workers: int) -> None:
        self.function = function
        threads = max(torch.get_num_threads() // workers, 1)
        context = multiprocessing.get_context("spawn")
        self.pool = ProcessPoolExecutor(workers, context, initializer=_settle, initargs=(threads,))

    def start(self, item: Item) -> Future[Result]:
        """Hand it over."""
        return self.pool.submit(self.function, item)

    def finished(self, tickets: list[Future[Result]]) -> Iterator[tuple[Any, Result]]:
        """Wait."""
        done, _ = wait(tickets, return_when=FIRST_COMPLETED)
        for ticket in done:
            try:
                result = ticket.result()
            except BrokenProcessPool as error:
                raise AttentuneError(
                    "a worker process died (out of memory, perhaps); finished work is kept: start again to go on, "
                    "with fewer workers if it happens again"
                ) from error
            yield ticket, result

    def close(self) -> None:
        """Let them finish what they are at."""
        self.pool.shutdown(cancel_futures=True)


def _settle(threads: int) -> None:
    """Make a fresh process ready to work."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    # A parent that is killed cannot let its workers go, and they would wait for it for ever.
    threading.Thread(target=_end_with_parent, name="attentune-parent", daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(function: Callable[[Item], Result], item: Item) -> Result:
    """On a worker of Ray, which nobody makes ready before."""
    keep_freed_memory()
    return function(item)


class _Ray(_Workplace[Item, Result]):
    """A Ray cluster; each item takes one CPU, and one GPU where the cluster has any."""

    def __init__(self, function: Callable[[Item], Result], workers: int, address: str) -> None:
        self.ray, self.fresh = join(address, num_cpus=workers)
        gpus = 1 if self.ray.cluster_resources().get("GPU") else 0
        self.function = function
        self.task: Any = self.ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0)(_work)

    def start(self, item: Item) -> Any:
        """Hand it over."""
        return self.task.remote(self.function, item)

    def finished(self, tickets: list[Any]) -> Iterator[tuple[Any, Result]]:
        """Wait."""
        done, _ = self.ray.wait(tickets, num_returns=1)
        for ticket in cast("list[Any]", done):
            try:
                result = self.ray.get(ticket)
            except self.ray.exceptions.RayTaskError as error:
                raise error.cause if isinstance(error.cause, Exception) else error from error
            except self.ray.exceptions.RayError as error:
                raise AttentuneError(
                    "a Ray worker died; finished work is kept: start again to go on "
                    f"({str(error).strip().splitlines()[0]})"
                ) from error
            yield ticket, result

    def close(self) -> None:
        """Leave the cluster, unless the caller had joined it already."""
        if self.fresh:
            self.ray.shutdown()
