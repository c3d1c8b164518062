"""What waits for the model, and which of it makes the next batch."""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from attentune.errors import ConfigError, OverloadedError, UnsupportedError
from attentune.serving.held import Held
from attentune.tasks.task import Inputs, Logits


@dataclass(eq=False)
class Piece:
    """One sequence of one task."""

    held: Held
    inputs: Inputs
    attention: bool = False
    """Whether the weights of mixed prompts are wanted."""
    weights: Logits | None = None
    """[J], from before `logits` has its result."""
    logits: Future[Logits] = field(default_factory=lambda: Future[Logits]())
    """Cancelled, it leaves the queue without being run."""
    arrived: float = field(default_factory=time.monotonic)

    @property
    def length(self) -> int:
        """T."""
        return len(self.inputs["input_ids"])

    @property
    def bucket(self) -> int:
        """Sequences of one bucket differ in length by a quarter at most, so that little of a batch is padding."""
        return math.ceil(math.log(max(self.length, 8), 1.25))


class Batcher:
    """A queue that gives batches of like length, fair between tasks.

    The tasks take turns in leading a batch with their oldest sequence; sequences of its bucket fill it up, one a task
    in turn, to at most `rows` and `tokens` (rows times the longest). So a task that floods the queue delays the others
    by a batch, not by its flood. A batch that is not full waits for company until its oldest has waited `wait` seconds.

    Raises:
        ConfigError: a batch without rows, or a queue without places.
    """

    def __init__(self, tokens: int = 8192, rows: int = 64, wait: float = 0.002, queue: int = 4096) -> None:
        if rows < 1 or queue < 1:
            raise ConfigError(f"a batch has 1 row at least, and the queue 1 place; found rows={rows}, queue={queue}")
        self.tokens, self.rows, self.wait, self.queue = tokens, rows, wait, queue
        self._turns: OrderedDict[str, None] = OrderedDict()
        self._buckets: dict[int, OrderedDict[str, deque[Piece]]] = {}
        self._count = 0
        self._tokens = 0
        self._closed = False
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return self._count

    def check(self, count: int) -> None:
        """Whether there is room for so many sequences now.

        Raises:
            UnsupportedError: they are more than the queue ever holds.
            OverloadedError: the queue is full, or closed.
        """
        if count > self.queue:
            raise UnsupportedError(
                f"the texts of the request are {count} sequences and the queue holds {self.queue}; ask for fewer at "
                "once"
            )
        if self._closed:
            raise OverloadedError("the engine is shutting down")
        if self._count + count > self.queue:
            raise OverloadedError(f"{self._count} sequences are waiting and at most {self.queue} may; try later")

    def put(self, pieces: Sequence[Piece]) -> None:
        """Queue sequences, all or none; raises as `check` does."""
        with self._changed:
            self.check(len(pieces))
            for piece in pieces:
                task = piece.held.entry.name
                self._buckets.setdefault(piece.bucket, OrderedDict()).setdefault(task, deque()).append(piece)
                self._turns.setdefault(task)
                self._tokens += piece.length
            self._count += len(pieces)
            self._changed.notify_all()

    def take(self) -> list[Piece] | None:
        """The next batch; waits for one. None: the queue is closed and empty."""
        with self._changed:
            while True:
                while not self._count and not self._closed:
                    self._changed.wait()
                if not self._count:
                    return None
                self._wait_for_company()
                if batch := [piece for piece in self._choose() if piece.logits.set_running_or_notify_cancel()]:
                    return batch

    def close(self) -> None:
        """Accept no more; what waits is still given out."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _wait_for_company(self) -> None:
        end = self._oldest() + self.wait
        while not self._closed and self._count < self.rows and self._tokens < self.tokens:
            left = end - time.monotonic()
            if left <= 0 or not self._changed.wait(left):
                return

    def _oldest(self) -> float:
        return min(queue[0].arrived for bucket in self._buckets.values() for queue in bucket.values())

    def _choose(self) -> list[Piece]:
        leader = next(iter(self._turns))
        heads = {number: bucket[leader][0].arrived for number, bucket in self._buckets.items() if leader in bucket}
        number = min(heads, key=lambda n: heads[n])
        bucket = self._buckets[number]
        bucket.move_to_end(leader, last=False)
        batch: list[Piece] = []
        longest = 0
        while bucket and len(batch) < self.rows:
            task, queue = next(iter(bucket.items()))
            longest = max(longest, queue[0].length)
            if batch and longest * (len(batch) + 1) > self.tokens:
                break
            batch.append(self._pop(number, task))
        return batch

    def _pop(self, number: int, task: str) -> Piece:
        """The task's oldest sequence of a bucket; the task goes to the end of both turns."""
        bucket = self._buckets[number]
        queue = bucket[task]
        piece = queue.popleft()
        self._count -= 1
        self._tokens -= piece.length
        if queue:
            bucket.move_to_end(task)
        else:
            del bucket[task]
            if not bucket:
                del self._buckets[number]
        if any(task in other for other in self._buckets.values()):
            self._turns.move_to_end(task)
        else:
            del self._turns[task]
        return piece
