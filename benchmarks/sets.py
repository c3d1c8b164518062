"""The sets that are measured: rows drawn once and for all, and the one score that each set is known by."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sklearn.metrics import recall_score

from attentune import demo
from attentune.tasks import Answer, Data, Task, load_data, task_of
from attentune.tasks.sources import Row

METRICS = {
    "trec6": "accuracy",
    "sst2": "accuracy",
    "tweet_irony": "f1_irony",
    "conll2003": "f1",
    "tweet_sentiment": "macro_recall",
    "mrpc": "accuracy",
    "intent": "accuracy",
}
"""Set -> score, in the order of measuring (short texts first). `f1` of a tagging set is over whole entities."""

LENGTHS = {"mrpc": 128}
"""Most tokens of a row, where they are not 64."""


@dataclass(frozen=True)
class Sizes:
    """How many rows of each split are used, at most."""

    train: int = 1000
    validation: int = 500
    test: int = 1000


@dataclass(frozen=True)
class Set:
    """One task with the rows that every contender sees."""

    name: str
    data: Data
    task: Task
    metric: str
    max_length: int

    def score(self, answers: Sequence[Answer], rows: Sequence[Row]) -> float:
        """The score that the set is known by."""
        if self.metric == "macro_recall":
            truth, found = [row["label"] for row in rows], [answer["label"] for answer in answers]
            return float(recall_score(truth, found, average="macro"))
        return self.task.score(answers, rows)[self.metric]


def load_set(name: str, folder: Path | None, sizes: Sizes) -> Set:
    """The set `folder/name`, or the demo's `intent`, cut to `sizes` by a draw that no seed of a run changes."""
    if name == "intent":
        whole = load_data(demo.path(name, "train").parent)
    else:
        assert folder is not None
        whole = load_data(folder / name)
    data = replace(
        whole,
        train=draw(whole.train, sizes.train),
        validation=draw(whole.validation, sizes.validation),
        test=draw(whole.test, sizes.test),
    )
    return Set(name, data, task_of(whole), METRICS[name], LENGTHS.get(name, 64))


def draw(rows: list[Row], count: int) -> list[Row]:
    return random.Random(0).sample(rows, min(count, len(rows)))
