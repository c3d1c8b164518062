"""Are stated probabilities true? Expected calibration error, Brier score, log loss, reliability; one temperature mends.

Two kinds of targets, told apart by their shape, stand beside logits [N,C] everywhere here:

    targets [N]     one class number a row: softmax; what is judged is the probability of the chosen class
    targets [N,C]   0 or 1 for each class: sigmoid; what is judged is every stated probability by itself

A word of a tagged sentence is a row here.

Sources: Naeini, Cooper, Hauskrecht 2015 (expected calibration error); Guo, Pleiss, Sun, Weinberger 2017 (temperature);
Nixon et al. 2019 (bins of equal mass); Brier 1950; DeGroot and Fienberg 1983 (reliability).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

from attentune.errors import DataError
from attentune.evaluation.probabilities import sigmoid, softmax

Array = NDArray[np.float64]

BINS = 15
"""Bins of the expected calibration error, as in Guo et al."""
SPREAD = 1.0
"""Standard deviation of log T before any row is seen: worth less than one row of evidence, but it keeps T finite where
every validation row is right, where the likelihood alone would ask for T = 0."""
RANGE = (0.02, 50.0)
"""Where T is looked for."""


@dataclass(frozen=True)
class Reliability:
    """Stated and observed, bin by bin; empty bins are left out."""

    stated: Array
    """Mean stated probability of each bin."""
    observed: Array
    """Share of each bin that came true."""
    weight: Array
    """Share of all rows that fell into each bin."""

    @property
    def error(self) -> float:
        """The expected calibration error, between 0 (perfect) and 1: sum of weight |observed - stated|."""
        return float(np.sum(self.weight * np.abs(self.observed - self.stated)))

    def to_card(self) -> dict[str, list[float]]:
        """As plain JSON values, to six digits."""
        return {f.name: [round(float(x), 6) for x in getattr(self, f.name)] for f in fields(self)}

    @classmethod
    def from_card(cls, card: Mapping[str, Sequence[float]]) -> Self:
        """The way back."""
        return cls(**{f.name: np.asarray(card[f.name], dtype=float) for f in fields(cls)})


def reliability(stated: ArrayLike, true: ArrayLike, bins: int = BINS, equal_mass: bool = False) -> Reliability:
    """Stated probabilities [M] and whether each came true [M] -> bins of equal width, or of equal mass.

    Bins of equal width are ((b - 1) / bins, b / bins]; a 0 falls into the first one. Bins of equal mass hold the same
    number of rows, to one row; equal probabilities can then fall into neighbouring bins. (Naeini et al. 2015, section
    on ECE; Nixon et al. 2019, section 4.)
    """
    p, y = np.asarray(stated, dtype=float), np.asarray(true, dtype=float)
    if p.shape != y.shape or p.ndim != 1:
        raise DataError(f"wanted one outcome for each stated probability, found shapes {p.shape} and {y.shape}")
    if not len(p):
        raise DataError("no probability to judge; at least one is needed")
    if equal_mass:
        order = np.argsort(p, kind="stable")
        bin_of = np.empty(len(p), dtype=int)
        bin_of[order] = np.arange(len(p)) * bins // len(p)
    else:
        bin_of = np.clip(np.ceil(p * bins).astype(int) - 1, 0, bins - 1)
    count = np.bincount(bin_of, minlength=bins)
    full = count > 0
    mean = [np.bincount(bin_of, weights=x, minlength=bins)[full] / count[full] for x in (p, y)]
    return Reliability(stated=mean[0], observed=mean[1], weight=count[full] / len(p))


def probabilities(logits: NDArray[np.floating], targets: NDArray[np.generic], temperature: float = 1.0) -> Array:
    """Logits [N,C] -> probabilities [N,C], by softmax or sigmoid as the targets' shape says."""
    return (softmax if targets.ndim == 1 else sigmoid)(logits, temperature)


def judged(p: Array, targets: NDArray[np.generic]) -> tuple[Array, NDArray[np.bool_]]:
    """Probabilities [N,C] -> the stated ones that are judged [M] and whether each came true [M]."""
    if targets.ndim == 1:
        return p.max(axis=1), p.argmax(axis=1) == targets
    return p.ravel(), targets.ravel().astype(bool)


def brier(p: Array, targets: NDArray[np.generic]) -> float:
    """Mean squared distance between stated and true.

    Over rows the sum over classes of (p - y)^2, from 0 to 2 (Brier 1950); for sigmoid the mean over every (p - y)^2,
    from 0 to 1.
    """
    if targets.ndim == 1:
        return float(np.mean(np.sum((p - _one_hot(targets, p.shape[1])) ** 2, axis=1)))
    return float(np.mean((p - targets.astype(float)) ** 2))


def log_loss(logits: NDArray[np.floating], targets: NDArray[np.generic], temperature: float = 1.0) -> float:
    """Mean -log of the probability of what is true, in nats, from the logits so that nothing underflows."""
    z = np.asarray(logits, dtype=float) / temperature
    if targets.ndim == 1:
        return float(np.mean(np.asarray(logsumexp(z, axis=1)) - z[np.arange(len(z)), targets.astype(int)]))
    return float(np.mean(np.logaddexp(0.0, z) - z * targets.astype(float)))


def fit_temperature(logits: NDArray[np.floating], targets: NDArray[np.generic]) -> float:
    """The T that makes softmax(z / T), or sigmoid(z / T), fit the targets best: T > 1 where the model says too much.

    Minimises the log loss (Guo et al. 2017, section 4.2), as `fit` does; classes keep their order.
    """
    _check(logits, targets)
    return fit(lambda temperature: len(logits) * log_loss(logits, targets, temperature))


def fit(loss: Callable[[float], float], precision: float = 1e-6) -> float:
    """The T that minimises loss(T), the sum of N log losses, plus (log T)^2 / 2.

    The second term weighs less than one row, and no N of use notices it. The log loss is never above that of T = 1.
    `precision` is that of log T.
    """

    def cost(log_t: float) -> float:
        return loss(float(np.exp(log_t))) + (log_t / SPREAD) ** 2 / 2

    low, high = np.log(RANGE)
    found = minimize_scalar(cost, bounds=(low, high), method="bounded", options={"xatol": precision})
    return float(np.exp(found.x)) if found.fun < cost(0.0) else 1.0


def scores(logits: NDArray[np.floating], targets: NDArray[np.generic], temperature: float = 1.0) -> dict[str, float]:
    """All numbers at a temperature: `ece`, `ece_mass` (bins of equal mass), `brier`, `nll`. Less is better."""
    _check(logits, targets)
    p = probabilities(logits, targets, temperature)
    stated, true = judged(p, targets)
    return {
        "ece": reliability(stated, true).error,
        "ece_mass": reliability(stated, true, equal_mass=True).error,
        "brier": brier(p, targets),
        "nll": log_loss(logits, targets, temperature),
    }


def _one_hot(targets: NDArray[np.generic], classes: int) -> Array:
    return np.eye(classes)[targets.astype(int)]


def _check(logits: NDArray[np.floating], targets: NDArray[np.generic]) -> None:
    if logits.ndim != 2 or targets.shape not in (logits.shape[:1], logits.shape):
        raise DataError(
            f"wanted logits [N,C] with targets [N] or [N,C], found logits {logits.shape} and targets {targets.shape}"
        )
    if not len(logits):
        raise DataError("no row to calibrate on; at least one is needed")
