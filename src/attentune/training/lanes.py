"""Runs that take turns: each stands still where it asks for something, and goes on with the answer.

A training loop of others (transformers.Trainer) cannot be cut into steps from outside, but a thread can wait inside of
one. Only one lane runs at a time, and each for as long as it likes: nothing is concurrent, so the same lanes do the
same things in the same order on every machine.
"""

from __future__ import annotations

from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread
from typing import Any, Generic, TypeVar

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")


class Stopped(BaseException):
    """Raised inside a lane that is to end where it stands; not an Exception, which code on the way might swallow."""


class _End:
    """The lane is over, by an error or without."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class Lane(Generic[Asked, Answer]):
    """One run: `run(ask)` in a thread of its own, where `ask(x)` waits for the answer to x."""

    def __init__(self, run: Callable[[Callable[[Asked], Answer]], None]) -> None:
        self._run = run
        self._asked: SimpleQueue[Asked | _End] = SimpleQueue()
        self._answers: SimpleQueue[Any] = SimpleQueue()
        self._at_work = False
        # A daemon, so that a lane left standing does not keep a process that ends for another reason.
        self._thread = Thread(target=self._main, daemon=True)

    def start(self) -> Asked | None:
        """Run up to the first thing that is asked; None: the lane is over without.

        Raises:
            BaseException: what the run raised.
        """
        self._thread.start()
        return self._until_asked()

    def answer(self, value: Answer) -> Asked | None:
        """Go on up to the next thing that is asked; else as `start`."""
        self._answers.put(value)
        return self._until_asked()

    def fail(self, error: Exception) -> Asked | None:
        """Raise an error where the lane waits for its answer; else as `start`."""
        self._answers.put(error)
        return self._until_asked()

    def stop(self) -> None:
        """End a lane that waits for an answer; one at work ends where it asks next, which nobody waits for."""
        self._answers.put(Stopped())
        if not self._at_work:
            self._thread.join()

    def _until_asked(self) -> Asked | None:
        self._at_work = True  # And so it stays where an interrupt ends the wait: only the main thread hears of it.
        found = self._asked.get()
        self._at_work = False
        if not isinstance(found, _End):
            return found
        self._thread.join()
        if found.error is not None:
            raise found.error
        return None

    def _ask(self, what: Asked) -> Answer:
        self._asked.put(what)
        answer = self._answers.get()
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def _main(self) -> None:
        error: BaseException | None = None
        try:
            self._run(self._ask)
        except BaseException as raised:
            error = raised
        self._asked.put(_End(error))
