"""Is this text for the task at all? A score of strangeness from the logits, and a threshold chosen on validation.

Sources: Hendrycks and Gimpel 2017 (the largest probability); Liu, Wang, Owens, Li 2020 (energy); Larson et al. 2019
(out-of-scope intents); Youden 1950 (the threshold).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp

from attentune.errors import DataError
from attentune.evaluation.probabilities import softmax

Array = NDArray[np.float64]


def energy(logits: NDArray[np.floating]) -> Array:
    """-log sum exp z: logits [N,C] -> [N], higher where no class is called for (Liu et al. 2020, equation 3)."""
    return -np.asarray(logsumexp(np.asarray(logits, dtype=float), axis=-1))


def doubt(logits: NDArray[np.floating]) -> Array:
    """1 - the largest probability: logits [N,C] -> [N] (Hendrycks and Gimpel 2017)."""
    return 1.0 - softmax(logits).max(axis=-1)


SCORES: dict[str, Callable[[NDArray[Any]], Array]] = {"energy": energy, "doubt": doubt}
"""What a task card can name; higher is stranger, whatever the temperature of the probabilities."""


def choose_score(inside: NDArray[np.floating], outside: NDArray[np.floating]) -> str:
    """The score of SCORES that tells validation logits [N,C] inside from those outside best, by AUROC."""
    return max(SCORES, key=lambda name: auroc(SCORES[name](inside), SCORES[name](outside)))


def threshold(inside: ArrayLike, outside: ArrayLike) -> float:
    """The score from which a row counts as outside: it makes recall of both sides together largest.

    That is Youden's J = recall outside + recall inside - 1. It does not depend on how many rows of either side the
    validation split happens to have. It lies halfway between the two rows that it parts.
    """
    a, b = _sides(inside, outside)
    values = np.unique(np.concatenate([a, b]))
    cuts = np.append(values[0], (values[1:] + values[:-1]) / 2)
    recall_outside = 1 - np.searchsorted(np.sort(b), cuts) / len(b)
    recall_inside = np.searchsorted(np.sort(a), cuts) / len(a)
    return float(cuts[np.argmax(recall_outside + recall_inside)])


def threshold_without(inside: ArrayLike, share: float) -> float:
    """Where no row outside is at hand: the score that this share of the validation rows inside exceeds."""
    scores = np.asarray(inside, dtype=float)
    if not len(scores):
        raise DataError("no validation row to choose a threshold by; at least one is needed")
    return float(np.nextafter(np.quantile(scores, 1 - share, method="higher"), np.inf))


def auroc(inside: ArrayLike, outside: ArrayLike) -> float:
    """The chance that a row outside scores higher than one inside; 0.5 is guessing."""
    from sklearn.metrics import roc_auc_score  # Late, as in `metrics`.

    a, b = _sides(inside, outside)
    return float(roc_auc_score(np.repeat([0, 1], [len(a), len(b)]), np.concatenate([a, b])))


def detection(inside: ArrayLike, outside: ArrayLike, at: float) -> dict[str, float]:
    """How well a threshold works: `scope_auroc`, `scope_recall` and `scope_precision` of rows outside, and
    `scope_false_alarms`, the share of rows inside that are turned away.
    """  # fmt: skip
    a, b = _sides(inside, outside)
    caught, alarms = int(np.sum(b >= at)), int(np.sum(a >= at))
    return {
        "scope_auroc": auroc(a, b),
        "scope_recall": caught / len(b),
        "scope_precision": caught / (caught + alarms) if caught + alarms else 0.0,
        "scope_false_alarms": alarms / len(a),
    }


def _sides(inside: ArrayLike, outside: ArrayLike) -> tuple[Array, Array]:
    a, b = np.asarray(inside, dtype=float), np.asarray(outside, dtype=float)
    if not (len(a) and len(b)):
        raise DataError(f"wanted rows inside and outside the scope, found {len(a)} and {len(b)}")
    return a, b
