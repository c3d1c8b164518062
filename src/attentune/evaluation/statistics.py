"""How sure a score is: bootstrap intervals over test rows, and paired differences.

Letters: N test rows, S statistics a row, K runs (seeds). A score is a function (its `form`) of
the means of N rows of statistics, so that a resample of the rows is one row of a matrix product:

    mean          S = 1: the row's own score                          -> its mean
    f1            S = 3C: found and right, found, wanted, for C groups  -> mean F1 of the groups that occur
    correlation   S = 2: prediction p, reference r                    -> Pearson's correlation

Percentile bootstrap: B. Efron, R. Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from attentune.errors import ConfigError, DataError

Array = NDArray[np.float64]
FORMS = ("mean", "f1", "correlation")
RESAMPLES = 2000
BLOCK = 2**23
"""Numbers of a block of resamples that is in memory at a time."""


@dataclass(frozen=True)
class Estimate:
    """A value and the percentile interval around it."""

    value: float
    low: float
    high: float

    @property
    def sure(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.low > 0 or self.high < 0


def score(form: str, rows: Array) -> float:
    """The score of all rows of statistics [N,S]."""
    x = _moments(form, rows)
    return float(_of_means(form, x.mean(0)))


@dataclass(frozen=True)
class Bootstrap:
    """The scores of K runs, of their rows and of each resample of them."""

    values: Array
    """[K]"""
    resampled: Array
    """[K,resamples]; runs of the same number of rows see the same resamples."""
    rows: int
    """N"""
    seeds: tuple[int, ...]
    """[K], of the runs."""

    def estimate(self, level: float = 0.95) -> Estimate:
        """The mean over runs, and the interval that holds the middle `level` of its resamples."""
        low, high = np.quantile(self.resampled.mean(0), [(1 - level) / 2, (1 + level) / 2])
        return Estimate(float(self.values.mean()), float(low), float(high))

    def __sub__(self, other: Bootstrap) -> Bootstrap:
        """The paired difference, seed by seed and resample by resample, of the seeds that both sides have.

        Raises:
            DataError: the rows are not the same in number, or no seed is on both sides.
        """
        if self.rows != other.rows:
            raise DataError(f"paired runs have the same rows, found {self.rows} and {other.rows}")
        both = tuple(seed for seed in self.seeds if seed in other.seeds)
        if not both:
            raise DataError(f"paired runs have seeds in common, found {self.seeds} and {other.seeds}")
        mine, theirs = ([runs.seeds.index(seed) for seed in both] for runs in (self, other))
        return Bootstrap(
            self.values[mine] - other.values[theirs], self.resampled[mine] - other.resampled[theirs], self.rows, both
        )


def bootstrap(
    form: str, runs: Sequence[Array], resamples: int = RESAMPLES, seed: int = 0, seeds: Sequence[int] | None = None
) -> Bootstrap:
    """K runs on the same rows, [N,S] each; `seeds` are those of their training, 0 to K - 1 unless told otherwise.

    Raises:
        DataError: there is no run, a run has no rows, or another number of them.
    """
    if not runs or any(len(rows) != len(runs[0]) or not len(rows) for rows in runs):
        raise DataError("a bootstrap needs runs of the same rows, at least one of each")
    count, known = len(runs[0]), range(len(runs)) if seeds is None else seeds
    moments, equal = [_moments(form, rows) for rows in runs], np.full(count, 1 / count)
    draw, step = np.random.default_rng(seed), max(BLOCK // count, 1)
    found: list[Array] = []
    for start in range(0, resamples, step):
        times = draw.multinomial(count, equal, size=min(step, resamples - start)).astype(float)
        found.append(np.stack([_of_means(form, times @ means / count) for means in moments]))
    return Bootstrap(np.array([score(form, rows) for rows in runs]), np.concatenate(found, axis=1), count, tuple(known))


def _moments(form: str, rows: Array) -> Array:
    """What is averaged over rows: the statistics themselves, for a correlation also their products."""
    if form not in FORMS:
        raise ConfigError(f"no form of score {form!r}; there are {', '.join(FORMS)}")
    if form != "correlation":
        return np.asarray(rows, dtype=float)
    # Far from 0 the products would lose the digits that differ; a correlation does not mind the shift.
    p, r = (np.asarray(rows, dtype=float) - np.mean(rows, 0)).T
    return np.stack([p, r, p * p, r * r, p * r], axis=-1)


def _of_means(form: str, x: Array) -> Array:
    """Means [...,S] -> scores [...]."""
    if form == "mean":
        return x[..., 0]
    if form == "f1":
        groups = x.reshape(*x.shape[:-1], -1, 3)
        total = groups[..., 1] + groups[..., 2]
        each = 2 * groups[..., 0] / np.where(total > 0, total, 1)
        return each.sum(-1) / np.maximum((total > 0).sum(-1), 1)
    p, r, pp, rr, pr = np.moveaxis(x, -1, 0)
    size = np.sqrt(np.maximum(pp - p * p, 0) * np.maximum(rr - r * r, 0))
    return np.where(size > 0, (pr - p * r) / np.where(size > 0, size, 1), 0.0)
