"""Bootstrap and paired differences, beside slow references and cases with a known answer."""

import math
import operator
from typing import Any, cast

import numpy as np
import pytest
from sklearn.metrics import f1_score

from attentune.errors import ConfigError, DataError
from attentune.evaluation.statistics import bootstrap, score


def slow_score(form: str, rows: np.ndarray[Any, Any]) -> float:
    if form == "mean":
        return sum(row[0] for row in rows) / len(rows)
    if form == "correlation":
        p, r = rows[:, 0], rows[:, 1]
        return 0.0 if np.ptp(p) == 0 or np.ptp(r) == 0 else float(np.corrcoef(p, r)[0, 1])
    each: list[float] = []
    for group in range(rows.shape[1] // 3):
        right, found, wanted = (sum(row[3 * group + i] for row in rows) for i in range(3))
        if found + wanted:
            each.append(2 * right / (found + wanted))
    return sum(each) / len(each) if each else 0.0


def rows_of(form: str, count: int, seed: int = 0) -> np.ndarray[Any, Any]:
    draw = np.random.default_rng(seed)
    if form == "mean":
        return draw.integers(0, 2, (count, 1)).astype(float)
    if form == "correlation":
        p = draw.normal(size=count)
        return np.stack([p, 0.5 * p + draw.normal(size=count) + 100], -1)
    found, wanted = draw.integers(0, 3, (2, count, 4))
    return np.stack([np.minimum(found, wanted), found, wanted], -1).reshape(count, 12).astype(float)


@pytest.mark.parametrize("form", ["mean", "f1", "correlation"])
def test_scores_and_bootstrap_equal_loops(form: str) -> None:
    runs = [rows_of(form, 23, seed) for seed in (1, 2)]
    assert score(form, runs[0]) == pytest.approx(slow_score(form, runs[0]))
    draw = np.random.default_rng(5)
    counts = draw.multinomial(23, [1 / 23] * 23, size=40)
    picked = [np.repeat(np.arange(23), one) for one in counts]
    slow = [np.mean([slow_score(form, rows[at]) for rows in runs]) for at in picked]
    ours = bootstrap(form, runs, resamples=40, seed=5)
    found = ours.estimate(level=0.9)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(slow, [0.05, 0.95])))
    assert found.value == pytest.approx(np.mean([slow_score(form, rows) for rows in runs]))
    theirs = [rows_of(form, 23, 3)]
    # Theirs has one run: it is beside the first of ours.
    apart = [slow_score(form, runs[0][at]) - slow_score(form, theirs[0][at]) for at in picked]
    paired = (ours - bootstrap(form, theirs, resamples=40, seed=5)).estimate(level=0.9)
    assert (paired.low, paired.high) == pytest.approx(tuple(np.quantile(apart, [0.05, 0.95])))


def test_f1_of_classes_is_sklearns() -> None:
    draw = np.random.default_rng(0)
    p, r = draw.integers(0, 5, (2, 50))
    p[p == 4] = 3  # the last class is never found
    rows = np.stack([np.stack([(p == c) & (r == c), p == c, r == c], -1) for c in range(7)], 1).reshape(50, 21)
    assert score("f1", rows.astype(float)) == pytest.approx(
        f1_score(r, p, average="macro", zero_division=cast("Any", 0))
    )


def test_intervals_have_the_width_that_theory_gives() -> None:
    rows = np.array([[1.0]] * 300 + [[0.0]] * 100)
    found = bootstrap("mean", [rows]).estimate()
    half = 1.96 * math.sqrt(0.75 * 0.25 / 400)
    assert found.value == 0.75
    assert (found.low, found.high) == pytest.approx((0.75 - half, 0.75 + half), abs=0.006)
    pairs = rows_of("correlation", 400)
    found = bootstrap("correlation", [pairs]).estimate()
    z = math.atanh(found.value)
    theory = [math.tanh(z + sign * 1.96 / math.sqrt(397)) for sign in (-1, 1)]
    assert [found.low, found.high] == pytest.approx(theory, abs=0.02)


def test_pairs_are_surer_than_two_intervals() -> None:
    """Right on the same rows but for ten that only one of them gets: sure, although both intervals overlap."""
    theirs = rows_of("mean", 200)
    ours = theirs.copy()
    ours[np.flatnonzero(ours == 0)[:10]] = 1
    one, other = bootstrap("mean", [ours]), bootstrap("mean", [theirs])
    assert one.estimate().low < other.estimate().high
    assert (one - other).estimate().sure
    assert not (one - one).estimate().sure
    assert (one - other).estimate().value == pytest.approx(0.05)


def test_runs_are_paired_by_their_seeds() -> None:
    """Seed 1 of ours is missing: what differs between the seeds is none of the difference."""
    theirs = [rows_of("mean", 40, seed) for seed in range(3)]
    ours = bootstrap("mean", [theirs[2], theirs[0]], seeds=[2, 0])
    for paired in (ours - bootstrap("mean", theirs), bootstrap("mean", theirs) - ours):
        assert sorted(paired.seeds) == [0, 2]
        assert (paired.values, paired.resampled) == (pytest.approx(0), pytest.approx(0))
    with pytest.raises(DataError, match=r"seeds in common, found \(2, 0\) and \(1,\)"):
        operator.sub(ours, bootstrap("mean", theirs[:1], seeds=[1]))


def test_equal_runs_give_a_point() -> None:
    found = bootstrap("mean", [np.ones((9, 1))]).estimate()
    assert (found.value, found.low, found.high) == (1, 1, 1)
    assert bootstrap("correlation", [np.ones((9, 2))]).estimate().value == 0


def test_refusals() -> None:
    with pytest.raises(DataError, match="found 3 and 4"):
        operator.sub(bootstrap("mean", [np.ones((3, 1))]), bootstrap("mean", [np.ones((4, 1))]))
    with pytest.raises(DataError, match="at least one of each"):
        bootstrap("mean", [])
    with pytest.raises(ConfigError, match="there are mean, f1, correlation"):
        score("median", np.ones((3, 1)))
