"""Batches of rows of like length, and what each row gets back of them."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from attentune.errors import ConfigError
from attentune.tasks import Features, Task
from attentune.tasks.task import Inputs, Logits

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_batches(
    items: Sequence[Item], length: Callable[[Item], int], run: Callable[[Sequence[Item]], list[Result]], size: int
) -> list[Result]:
    """Run over batches of items of like length (longest first); results in the order of the items."""
    if size < 1:
        raise ConfigError(f"a batch has at least one row, found batch_size={size}")
    order = sorted(range(len(items)), key=lambda i: -length(items[i]))
    results: dict[int, Result] = {}
    for start in range(0, len(order), size):
        at = order[start : start + size]
        results.update(zip(at, run([items[i] for i in at]), strict=True))
    return [results[i] for i in range(len(items))]


def logits_by_sequence(logits: Logits, sequences: Sequence[Inputs], tasks: Sequence[Task]) -> list[Logits]:
    """Logits of a mixed batch, [S,C] or [S,T,C], padded -> each sequence's own: [C], or [T,C] for a task on tokens.

    In a batch that has both, a sequence for the whole text stands at position 0.
    """
    found: list[Logits] = []
    for z, sequence, task in zip(logits, sequences, tasks, strict=True):
        if task.head == "token":
            found.append(z[: len(sequence["input_ids"]), : task.num_outputs])
        else:
            found.append((z[0] if z.ndim == 2 else z)[: task.num_outputs])
    return found


def joined(logits: Sequence[Any], task: Task) -> Any:
    """Logits of a row's sequences -> the row's, laid out as `pack` does; the text that was written as it is."""
    if not task.several:
        return logits[0]
    return np.concatenate(logits) if task.head == "token" else np.stack(logits)


def logits_by_row(logits: Logits, features: Sequence[Features], task: Task) -> list[Logits]:
    """Logits of rows of one task, [B,C] or [B,L,C], padded -> each row's own: [C] or [L,C]."""
    if task.head == "token":
        return [z[: len(f)] for z, f in zip(logits, features, strict=True)]
    return [z[: len(f.sequences)] if task.several else z for z, f in zip(logits, features, strict=True)]
