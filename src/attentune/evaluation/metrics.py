"""Scores of one split: plain arrays in, names and numbers out. Knows no task, no model and no tensor.

Every number is a float where more is better, but for those of LOWER_IS_BETTER. A score that the data leave undefined (a
correlation with a constant, the F1 of a class that nobody has) is 0.

scikit-learn, scipy.stats and seqeval take a second to import, for which nobody waits who predicts or serves: each is
imported where a score is computed.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from attentune.errors import ConfigError, DataError
from attentune.evaluation.answers import question_answering
from attentune.evaluation.generation import generation

Scores = dict[str, float]

MAIN = {
    "classification": "accuracy",
    "multilabel": "micro_f1",
    "regression": "pearson",
    "tagging": "f1",
    "question_answering": "f1",
    "multiple_choice": "accuracy",
    "generation": "bleu",
}
"""The metric that chooses the best checkpoint, by kind of task."""
LOWER_IS_BETTER = ("mse", "loss")
"""Of every other metric more is better."""
PREFIXES = ("B-", "I-", "E-", "S-")
"""Those of tags of the BIO family."""


def score(kind: str, predictions: Sequence[Any], references: Sequence[Any], labels: Sequence[str] = ()) -> Scores:
    """All scores of one kind of task.

    `labels` are the classes or tags of the task, which need not all occur; without them it has those that do.

    `predictions` and `references` hold one item a row: a class name (classification), a row of 0 and 1 (multilabel
    [B,C]), a number (regression), the list of one sentence's tags (tagging), a text and a list of texts
    (question_answering, generation), the index of a choice (multiple_choice).
    """
    scorers = {
        "classification": partial(classification, labels=labels),
        "multilabel": multilabel,
        "regression": regression,
        "tagging": partial(tagging, labels=labels),
        "question_answering": question_answering,
        "multiple_choice": multiple_choice,
        "generation": generation,
    }
    if kind not in scorers:
        raise ConfigError(f"no task kind {kind!r}; the kinds are {', '.join(scorers)}")
    if len(predictions) != len(references):
        raise DataError(f"{len(predictions)} predictions for {len(references)} references; one for each is needed")
    if not len(references):
        raise DataError("no rows to score; at least one is needed")
    return scorers[kind](predictions, references)


def classification(predictions: Sequence[Any], references: Sequence[Any], labels: Sequence[Any] = ()) -> Scores:
    """Accuracy, macro F1 over the classes that occur, Matthews; with two classes also the F1 of each, `f1_<class>`."""
    from sklearn.metrics import matthews_corrcoef

    classes: list[Any] = sorted(set(references) | set(predictions))
    one_by_one = cast("NDArray[np.float64]", _f1(references, predictions, labels=classes, average=None))
    scores = {
        "accuracy": float(np.mean([p == r for p, r in zip(predictions, references, strict=True)])),
        "macro_f1": float(np.mean(one_by_one)),
        "matthews": float(matthews_corrcoef(references, predictions)) if len(classes) > 1 else 0.0,
    }
    if len(labels or classes) == 2:
        scores |= {f"f1_{name}": f1_of(name, predictions, references) for name in labels or classes}
    return scores


def f1_of(name: Any, predictions: Sequence[Any], references: Sequence[Any]) -> float:
    """F1 of the one class `name`."""
    hits = [p == name for p in predictions], [r == name for r in references]
    return float(cast("float", _f1(hits[1], hits[0], average="binary")))


def multilabel(predictions: ArrayLike, references: ArrayLike) -> Scores:
    """Micro and macro F1 over [B,C] indicators, and the share of rows with every label right."""
    p, r = np.asarray(predictions, dtype=int), np.asarray(references, dtype=int)
    # By hand, as sklearn takes one column for two classes.
    hits, named = (p & r).sum(0), (p + r).sum(0)
    return {
        "micro_f1": float(2 * hits.sum() / max(named.sum(), 1)),
        "macro_f1": float(np.mean(2 * hits / np.maximum(named, 1))),
        "exact_match": float(np.mean(np.all(p == r, axis=-1))),
    }


def regression(predictions: ArrayLike, references: ArrayLike) -> Scores:
    """Pearson and Spearman correlation, mean squared error, R2."""
    from scipy.stats import rankdata

    p, r = np.asarray(predictions, dtype=float), np.asarray(references, dtype=float)
    mse = float(np.mean((p - r) ** 2))
    spread = float(np.var(r)) if np.ptp(r) > 0 else 0.0  # The mean of equal numbers may be rounded.
    return {
        "pearson": _correlation(p, r),
        "spearman": _correlation(rankdata(p), rankdata(r)),
        "mse": mse,
        "r2": 1.0 - mse / spread if spread > 0 else 0.0,
    }


def tagging(
    predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]], labels: Sequence[str] = ()
) -> Scores:
    """Entity precision, recall and F1 of BIO tags as conlleval counts them; accuracy over words.

    Tags without B- and I- (parts of speech) have no entities: then `f1` is the macro F1 over tags.
    """
    from seqeval.metrics import f1_score, precision_score, recall_score

    for i, (p, r) in enumerate(zip(predictions, references, strict=True)):
        if len(p) != len(r):
            raise DataError(f"row {i + 1} has {len(p)} predicted and {len(r)} reference tags; one for each is needed")
    flat_p, flat_r = [t for row in predictions for t in row], [t for row in references for t in row]
    accuracy = float(np.mean([p == r for p, r in zip(flat_p, flat_r, strict=True)])) if flat_r else 0.0
    if not is_bio(labels or flat_r):
        return {"f1": float(cast("float", _f1(flat_r, flat_p, average="macro"))), "accuracy": accuracy}
    rows = [list(row) for row in references], [list(row) for row in predictions]
    undefined = cast("Any", 0)
    return {
        "f1": float(cast("float", f1_score(*rows, zero_division=undefined))),
        "precision": float(cast("float", precision_score(*rows, zero_division=undefined))),
        "recall": float(cast("float", recall_score(*rows, zero_division=undefined))),
        "accuracy": accuracy,
    }


def multiple_choice(predictions: Sequence[int], references: Sequence[int]) -> Scores:
    """Accuracy."""
    return {"accuracy": float(np.mean(np.asarray(predictions) == np.asarray(references)))}


def is_bio(tags: Sequence[str]) -> bool:
    """Whether every tag is O or has a prefix of the BIO family."""
    return all(tag == "O" or tag[:2] in PREFIXES for tag in tags)


def _f1(references: Any, predictions: Any, **how: Any) -> Any:
    from sklearn.metrics import f1_score

    return f1_score(references, predictions, zero_division=cast("Any", 0), **how)


def _correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    a, b = a - a.mean(), b - b.mean()
    size = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / size if size > 0 else 0.0


NAMES = {
    "classification": ("accuracy", "macro_f1", "matthews"),
    "multilabel": ("micro_f1", "macro_f1", "exact_match"),
    "regression": ("pearson", "spearman", "mse", "r2"),
    "tagging": ("f1", "precision", "recall", "accuracy"),
    "question_answering": ("f1", "exact_match"),
    "multiple_choice": ("accuracy",),
    "generation": ("bleu", "chrf", "rouge1", "rouge2", "rougeL"),
}
"""The scores that every data set of a kind has."""


def check_name(kind: str, name: str, classes: Sequence[str] = ()) -> str:
    """The name, if `score` gives such a metric for the kind, else a ConfigError that names those there are."""
    known = [*NAMES[kind], *(f"f1_{c}" for c in classes if kind == "classification" and len(classes) == 2)]
    known += ["loss"] if kind == "generation" else []
    if kind == "tagging" and not is_bio(classes):
        known = [name for name in known if name not in ("precision", "recall")]
    if name not in known:
        raise ConfigError(f"no metric {name!r} for {kind}; there are {', '.join(known)}")
    return name
