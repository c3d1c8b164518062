"""How much rows are, seen before they are tokenised: what is too much is refused while it is small."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from attentune.tasks import Task
from attentune.tasks.answer import QuestionAnswering
from attentune.tasks.choose import MultipleChoice
from attentune.tasks.sources import Row

CHARACTERS = 8_000_000
"""What one request may have read at most: seconds of a tokenizer, which reads for all of them."""


def characters(task: Task, rows: Sequence[Row]) -> int:
    """What is read of the rows: a text once for each choice that follows it."""
    if isinstance(task, MultipleChoice):
        return sum(len(choice) + _length(row, "text", "text_pair") for row in rows for choice in row["choices"])
    return sum(_length(row, *row) for row in rows)


def sequences(task: Task, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], max_length: int) -> int:
    """How many sequences the rows become."""
    if isinstance(task, MultipleChoice):
        return sum(len(row["choices"]) for row in rows)
    if isinstance(task, QuestionAnswering):
        return sum(task.windows(tokenizer, rows, max_length))
    return len(rows)


def _length(row: Row, *names: str) -> int:
    found = [row[name] for name in names if name in row]
    return sum(sum(map(len, cast("list[Any]", value))) if isinstance(value, list) else len(value) for value in found)
