"""Answers of one split -> statistics by row, from which `evaluation.statistics` makes the task's main score again, and
the interval around it.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np

from attentune.evaluation.metrics import is_bio
from attentune.evaluation.statistics import Estimate, bootstrap
from attentune.tasks.sources import Row
from attentune.tasks.tag import spans_of
from attentune.tasks.task import Answer, Task

Statistics = tuple[str, list[list[float]]]
"""The form and S numbers a row."""


def by_row(task: Task, answers: Sequence[Answer], rows: Sequence[Row]) -> Statistics:
    """Correlations and F1 from what they are made of; any other score as the mean of the score of each row alone."""
    pairs = list(zip(answers, rows, strict=True))
    if task.main_metric == "pearson":
        return "correlation", [[float(a["value"]), float(row["label"])] for a, row in pairs]
    if task.main_metric == "micro_f1":
        return "f1", [_counts(set(a["labels"]), set(row["label"])) for a, row in pairs]
    if task.kind == "tagging":
        if is_bio(task.labels):
            spans = partial(spans_of, labels=task.labels)
            return "f1", [_counts(set(spans(a["tags"])), set(spans(row["tags"]))) for a, row in pairs]
        return "f1", [[n for tag in task.labels for n in _tag(tag, a["tags"], row["tags"])] for a, row in pairs]
    if task.main_metric == "accuracy" and "label" in pairs[0][0]:
        return "mean", [[float(a["label"] == row["label"])] for a, row in pairs]
    return "mean", [[task.score([answer], [row])[task.main_metric]] for answer, row in pairs]


def main_score(task: Task, answers: Sequence[Answer], rows: Sequence[Row]) -> Estimate | None:
    """The main score with its 95% interval; None where it cannot be made from rows, as BLEU."""
    if task.kind == "generation":
        return None
    form, statistics = by_row(task, answers, rows)
    return bootstrap(form, [np.array(statistics)]).estimate()


def _counts(found: set[object], wanted: set[object]) -> list[float]:
    return [float(len(found & wanted)), float(len(found)), float(len(wanted))]


def _tag(tag: str, found: Sequence[str], wanted: Sequence[str]) -> list[float]:
    at, there = ({i for i, name in enumerate(tags) if name == tag} for tags in (found, wanted))
    return _counts(set(at), set(there))
