"""One function over many items: in this process, each in a fresh process, or over machines with Ray.

A fresh process an item: what one leaves in memory is no cost of the next one.

`map(function, items, workers, ray_address)` yields each result as soon as it is there, in any order. Items are taken
from their iterable only when a worker is free, so what the iterable yields may depend on the results so far.

Functions and items are sent to other processes: the function stands at the top of a module (or is a `partial` of such
a one), the items are plain values.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar, cast

import torch

from attentune.allocator import keep_freed_memory
from attentune.cluster import join
from attentune.errors import AttentuneError, ConfigError

Item = TypeVar("Item")
Result = TypeVar("Result")
IMPORTED = ["attentune.comparison.run", "scipy.stats", "seqeval.metrics", "sklearn.metrics"]
"""What fresh processes need not import: what takes long, also of what is otherwise imported when a run is scored."""
GRACE = 10.0
"""Seconds that a process has to end when it is told to."""


def map(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int = 0, ray_address: str | None = None
) -> Generator[tuple[Item, Result]]:
    """(item, result) of every item, as they finish.

    With `ray_address` ("local" starts a cluster on this machine, "auto" joins the one that runs here, "host:port" joins
    another) `workers` processes of the cluster work at the same time; else `workers` of this machine, or, with 0, this
    very one.

    Raises:
        ConfigError: a negative number of workers, none on a cluster, or no Ray.
        AttentuneError: a worker died; what it had not finished is lost.
        Exception: whatever `function` raises.
    """
    given = iter(items)
    return drain(function, lambda: next(given, None), workers, ray_address)


def drain(
    function: Callable[[Item], Result],
    ask: Callable[[], Item | None],
    workers: int = 0,
    ray_address: str | None = None,
) -> Generator[tuple[Item, Result]]:
    """As `map`, with items that may become known only when others are finished.

    `ask` is called whenever a worker is free; None says that there is nothing to do now. It is asked again after the
    next result, and all is done when nothing is under way either.
    """
    if workers < 0 or (ray_address is not None and workers == 0):
        least = "0 (this process) or more workers are" if ray_address is None else "on a cluster at least one worker is"
        raise ConfigError(f"{least} needed, found workers={workers}")
    if ray_address is None and workers == 0:
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
    """A process an item, each with an equal part of the machine's threads."""

    def __init__(self, function: Callable[[Item], Result], workers: int) -> None:
        self.function = function
        self.threads = max(torch.get_num_threads() // workers, 1)
        # Linux forks a server that has imported the libraries and done nothing else: milliseconds instead of seconds.
        # Elsewhere a library that has only been imported may not survive a fork.
        self.context = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
        self.context.set_forkserver_preload(IMPORTED)
        self.pools: dict[Future[Result], ProcessPoolExecutor] = {}

    def start(self, item: Item) -> Future[Result]:
        """Hand it to a pool of one."""
        pool = ProcessPoolExecutor(1, self.context, initializer=_settle, initargs=(self.threads,))
        future = pool.submit(_work_alone, self.function, item)
        self.pools[future] = pool
        return future

    def finished(self, tickets: list[Future[Result]]) -> Iterator[tuple[Any, Result]]:
        """Wait."""
        done, _ = wait(tickets, return_when=FIRST_COMPLETED)
        # One that failed ends all: what the others made comes before it.
        for ticket in sorted(done, key=lambda ticket: ticket.exception() is not None):
            self.pools.pop(ticket).shutdown()
            try:
                result = ticket.result()
            except BrokenProcessPool as error:
                raise AttentuneError(
                    "a worker process died (out of memory, perhaps, or the script that began this lacks "
                    '`if __name__ == "__main__":`); finished work is kept: start again to go on, with fewer workers if '
                    "it happens again"
                ) from error
            yield ticket, result

    def close(self) -> None:
        """End the processes that are at work."""
        processes = [process for pool in self.pools.values() for process in _processes_of(pool)]
        for process in processes:
            process.terminate()
        for pool in self.pools.values():
            pool.shutdown(wait=False)
        for process in processes:
            process.join(GRACE)
            process.kill()


def _processes_of(pool: ProcessPoolExecutor) -> list[BaseProcess]:
    """No public way leads to them before Python 3.14; where none is left it is None."""
    found: Mapping[int, BaseProcess] | None = pool._processes  # pyright: ignore[reportPrivateUsage]
    return list((found or {}).values())


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


def _work_alone(function: Callable[[Item], Result], item: Item) -> Result:
    """In a process of its own. One that is told to end leaves the function first, which removes its temporary files."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        return function(item)
    except SystemExit:
        os._exit(1)
    finally:
        # A result that is half sent would be waited for.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


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
        self.task: Any = self.ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0, max_calls=1)(_work)

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
