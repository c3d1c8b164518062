"""Answering only where the model is sure: the share of wrong answers against the share of rows that get one.

Source: Geifman and El-Yaniv 2017 (selective classification); Geifman, Uziel, El-Yaniv 2019 (the area under the curve).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from attentune.errors import ConfigError, DataError

Array = NDArray[np.float64]


@dataclass(frozen=True)
class RiskCoverage:
    """The curve: answering all rows whose score is at least `threshold`, share `answered` of them, is wrong in `risk`.

    One point for each different score, from the surest rows to all rows.
    """

    threshold: Array
    answered: Array
    risk: Array

    @property
    def area(self) -> float:
        """AURC: the mean risk over the shares of rows answered; 0 is perfect, random order gives the risk of all.

        Rows of equal score are answered together, so each of them counts with the risk at their point.
        """
        return float(np.sum(np.diff(self.answered, prepend=0.0) * self.risk))

    def risk_at(self, answered: float) -> float:
        """The risk when at least this share of the rows, the surest, is answered."""
        return float(self.risk[np.searchsorted(self.answered, answered - 1e-12)])


def risk_coverage(scores: ArrayLike, right: ArrayLike) -> RiskCoverage:
    """How sure the model was of each answer [N] and whether it was right [N] -> the risk-coverage curve."""
    s, y = _checked(scores, right)
    order = np.argsort(-s, kind="stable")
    s, wrong = s[order], np.cumsum(~y[order])
    last = np.append(np.flatnonzero(np.diff(s)), len(s) - 1)
    count = last + 1
    return RiskCoverage(threshold=s[last], answered=count / len(s), risk=wrong[last] / count)


def abstain(scores: ArrayLike, right: ArrayLike, at: float) -> dict[str, float]:
    """What abstaining below a score does: `answered`, the share with a score of at least `at`; `risk`, the share of
    wrong ones among them (0 where none is answered).
    """  # fmt: skip
    check_share("abstain_at", at)
    s, y = _checked(scores, right)
    kept = s >= at
    return {"answered": float(kept.mean()), "risk": float(np.mean(~y[kept])) if kept.any() else 0.0}


def check_share(name: str, value: float) -> None:
    """A number between 0 and 1, or a ConfigError."""
    if not 0 <= value <= 1:
        raise ConfigError(f"{name} is a probability between 0 and 1, found {value}")


def _checked(scores: ArrayLike, right: ArrayLike) -> tuple[Array, NDArray[np.bool_]]:
    s, y = np.asarray(scores, dtype=float), np.asarray(right, dtype=bool)
    if s.shape != y.shape or s.ndim != 1:
        raise DataError(f"wanted one outcome for each score, found shapes {s.shape} and {y.shape}")
    if not len(s):
        raise DataError("no answer to judge; at least one is needed")
    return s, y
