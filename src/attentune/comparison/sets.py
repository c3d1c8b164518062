"""The rows that every contender sees: drawn once, whatever the seed of a run.

A small test split gives way to cross-validation over all rows, unless the set is one of few shots: with fewer rows to
learn from than to judge by, how few they are is the task, and more of them would be another one.
"""

import hashlib
import json
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

from attentune.tasks import Data, load_data
from attentune.tasks.data import split_off
from attentune.tasks.sources import Row

FEW_TEST_ROWS = 200
"""With fewer test rows one row moves the score by half a percent and more: all rows are used, in folds."""
FOLDS = 5


@dataclass(frozen=True)
class Reading:
    """What is said of a source's kind of task and columns, as `load_data` takes it; what is not said is guessed."""

    kind: str | None = None
    text: tuple[str, ...] = ()
    label: str | None = None
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Set:
    """One task's rows, whole."""

    name: str
    source: str
    data: Data
    reading: Reading = field(default_factory=Reading)

    @property
    def folds(self) -> int:
        """1: there is a test split. More: cross-validation over all rows."""
        learned, judged = len(self.data.train), len(self.data.validation) + len(self.data.test)
        few_shots = bool(self.data.test) and learned < judged
        return 1 if few_shots or len(self.data.test) >= FEW_TEST_ROWS else FOLDS

    @property
    def size(self) -> int:
        """Rows of all splits."""
        return len(self.data.train) + len(self.data.validation) + len(self.data.test)

    @property
    def fingerprint(self) -> str:
        """A hash of everything that was read."""
        data = self.data
        text = json.dumps([data.kind, data.columns.to_card(), data.labels, data.train, data.validation, data.test])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def fold(self, number: int, rows: int, test_rows: int) -> Data:
        """The rows of one fold, at most so many; without cross-validation there is fold 0 only."""
        data = self.data
        if self.folds > 1:
            data = self._held_out(number, round(rows * FOLDS / (FOLDS - 1)))
        return replace(
            data,
            train=_draw(data.train, data.kind, rows),
            validation=_draw(data.validation, data.kind, max(test_rows // 2, 1)),
            test=_draw(data.test, data.kind, test_rows),
        )

    def _held_out(self, number: int, rows: int) -> Data:
        """Of at most so many rows of all splits one fold is the test, and a part of the others validation."""
        data = self.data
        rest = _draw([*data.train, *data.validation, *data.test], data.kind, rows)
        parts: list[list[Row]] = []
        for left in range(FOLDS, 1, -1):
            rest, part = split_off(rest, data.kind, 1 / left, seed=0)
            parts.append(part)
        parts.append(rest)
        others = [row for i, part in enumerate(parts) if i != number for row in part]
        train, validation = split_off(others, data.kind, 0.1, seed=0)
        return replace(data, train=train, validation=validation, test=parts[number])


def _draw(rows: list[Row], kind: str, count: int) -> list[Row]:
    """At most so many, classes in proportion."""
    return rows if len(rows) <= count else split_off(rows, kind, count / len(rows), seed=0)[1]


@lru_cache(maxsize=8)
def load_set(source: str, reading: Reading = Reading()) -> Set:
    """A folder, a file, a hub id, or `demo:<task>` -> its rows, named after the last part.

    Raises:
        AttentuneError: there is no such thing, it cannot be read, or not so.
    """
    name = Path(source.removeprefix("demo:")).name.split(".")[0].replace(":", "-")
    data = load_data(source, reading.kind, reading.text, reading.label, choices=reading.choices)
    return Set(name, source, data, reading)
