"""Calibration against loops written from the formulas, against scikit-learn, and the laws of temperature."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sk

from attentune.errors import DataError
from attentune.evaluation import calibration
from attentune.evaluation.calibration import fit_temperature, judged, log_loss, probabilities, reliability


def sample(rows: int, classes: int, factor: float, seed: int = 0, width: float = 2.0) -> tuple[Any, Any]:
    """Logits that say `factor` times too much, and classes drawn from the true probabilities."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(rows, classes)) * width
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    return z * factor, np.array([rng.choice(classes, p=row) for row in p])


def sigmoid_sample(rows: int, classes: int, factor: float, seed: int = 0) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(rows, classes)) * 2
    return z * factor, (rng.random(z.shape) < 1 / (1 + np.exp(-z))).astype(float)


def slow_ece(stated: list[float], true: list[bool], bins: int) -> float:
    """Naeini et al. 2015: sum over bins of |B| / n * |acc(B) - conf(B)|, B_b = ((b - 1) / bins, b / bins]."""
    total = 0.0
    for b in range(1, bins + 1):
        inside = [i for i, p in enumerate(stated) if (b - 1) / bins < p <= b / bins or (b == 1 and p == 0)]
        if inside:
            accuracy = sum(true[i] for i in inside) / len(inside)
            confidence = sum(stated[i] for i in inside) / len(inside)
            total += len(inside) / len(stated) * abs(accuracy - confidence)
    return total


def slow_mass_ece(stated: list[float], true: list[bool], bins: int) -> float:
    """Bins of n / bins rows each in the order of what was stated."""
    pairs = sorted(zip(stated, true, strict=True), key=lambda pair: pair[0])
    groups: list[list[tuple[float, bool]]] = [[] for _ in range(bins)]
    for rank, pair in enumerate(pairs):
        groups[math.floor(rank * bins / len(pairs))].append(pair)
    return sum(abs(sum(y for _, y in g) - sum(p for p, _ in g)) / len(pairs) for g in groups if g)


OUTCOMES = st.lists(st.tuples(st.sampled_from([i / 64 for i in range(65)]), st.booleans()), min_size=1, max_size=60)


@given(OUTCOMES, st.integers(1, 20))
def test_calibration_errors_equal_their_formulas(outcomes: list[tuple[float, bool]], bins: int) -> None:
    stated, true = [p for p, _ in outcomes], [y for _, y in outcomes]
    found = reliability(stated, true, bins)
    assert found.error == pytest.approx(slow_ece(stated, true, bins), abs=1e-12)
    assert found.weight.sum() == pytest.approx(1.0)
    distinct = sorted({*stated})
    truth = [distinct.index(p) % 2 == 0 for p in distinct]
    assert reliability(distinct, truth, bins, equal_mass=True).error == pytest.approx(
        slow_mass_ece(distinct, truth, bins), abs=1e-12
    )


def test_bins_of_equal_mass_hold_equally_many() -> None:
    rng = np.random.default_rng(0)
    found = reliability(rng.random(100), rng.random(100) < 0.5, 7, equal_mass=True)
    assert set(np.round(found.weight * 100).astype(int)) == {14, 15}


def test_a_calibrated_sample_has_almost_no_error_and_a_loud_one_has() -> None:
    for logits, targets in (sample(20_000, 4, 1.0), sigmoid_sample(5_000, 4, 1.0)):
        true = calibration.scores(logits, targets, 1.0)
        loud = calibration.scores(3 * logits, targets, 1.0)
        assert true["ece"] < 0.015
        assert true["ece_mass"] < 0.015
        assert loud["ece"] > 0.1
        assert loud["ece_mass"] > 0.08
        assert loud["nll"] > true["nll"]
        assert loud["brier"] > true["brier"]


def test_scores_equal_scikit_learn() -> None:
    logits, targets = sample(300, 5, 1.7)
    p = probabilities(logits, targets, 1.3)
    found = calibration.scores(logits, targets, 1.3)
    assert found["nll"] == pytest.approx(sk.log_loss(targets, p, labels=range(5)))
    assert found["brier"] == pytest.approx(np.mean([sum((p[i] - np.eye(5)[t]) ** 2) for i, t in enumerate(targets)]))
    logits, targets = sigmoid_sample(300, 5, 1.7)
    p = probabilities(logits, targets, 1.3).ravel()
    found = calibration.scores(logits, targets, 1.3)
    assert found["nll"] == pytest.approx(sk.log_loss(targets.ravel(), p))
    assert found["brier"] == pytest.approx(sk.brier_score_loss(targets.ravel(), p))


def test_log_loss_does_not_underflow() -> None:
    assert log_loss(np.array([[1000.0, 0.0]]), np.array([1])) == pytest.approx(1000.0)
    assert log_loss(np.array([[1000.0, -1000.0]]), np.array([[0.0, 1.0]])) == pytest.approx(1000.0)


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.5])
@pytest.mark.parametrize("make", [sample, sigmoid_sample])
def test_the_temperature_that_was_put_in_is_found(make: Any, factor: float) -> None:
    logits, targets = make(4000, 6, factor)
    assert fit_temperature(logits, targets) == pytest.approx(factor, rel=0.06)


def test_the_temperature_is_the_best_of_a_grid() -> None:
    logits, targets = sample(200, 3, 2.0)

    def cost(t: float) -> float:
        p = np.exp(logits / t) / np.exp(logits / t).sum(1, keepdims=True)
        return -sum(math.log(p[i, y]) for i, y in enumerate(targets)) + math.log(t) ** 2 / 2

    grid = [1.01**k for k in range(-200, 201)]
    assert fit_temperature(logits, targets) == pytest.approx(min(grid, key=cost), rel=0.01)


@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(2, 6), st.floats(0.1, 20))
def test_temperature_keeps_the_order_of_classes_and_never_raises_the_loss(
    seed: int, rows: int, classes: int, factor: float
) -> None:
    logits, targets = sample(rows, classes, factor, seed)
    t = fit_temperature(logits, targets)
    assert 0 < t < math.inf
    p = probabilities(logits, targets, t)
    assert np.allclose(p.max(1), p[np.arange(rows), logits.argmax(1)])
    assert log_loss(logits, targets, t) <= log_loss(logits, targets) + 1e-9


def test_rows_may_have_fewer_classes_than_others() -> None:
    logits, targets = np.array([[1.0, 2.0, -np.inf], [0.0, 1.0, 2.0]]), np.array([0, 2])
    found = calibration.scores(logits, targets)
    first, second = 1 / (1 + math.e), math.e**2 / (1 + math.e + math.e**2)
    assert found["nll"] == pytest.approx(-(math.log(first) + math.log(second)) / 2)
    p = math.e / (1 + math.e + math.e**2), 1 / (1 + math.e + math.e**2)
    brier = 2 * (1 - first) ** 2 + (1 - second) ** 2 + p[0] ** 2 + p[1] ** 2
    assert found["brier"] == pytest.approx(brier / 2)
    assert fit_temperature(logits, targets) > 0


def test_rows_that_are_all_right_do_not_ask_for_certainty() -> None:
    logits, targets = np.tile([[2.0, 0.0]], (5, 1)), np.zeros(5, dtype=int)
    assert 0.3 < fit_temperature(logits, targets) < 1
    assert fit_temperature(np.zeros((3, 2)), np.array([0, 1, 1])) == pytest.approx(1.0, abs=0.01)


def test_what_is_judged() -> None:
    p = np.array([[0.7, 0.3], [0.4, 0.6]])
    stated, true = judged(p, np.array([0, 0]))
    assert (stated.tolist(), true.tolist()) == ([0.7, 0.6], [True, False])
    stated, true = judged(p, np.array([[1.0, 0.0], [1.0, 1.0]]))
    assert (stated.tolist(), true.tolist()) == ([0.7, 0.3, 0.4, 0.6], [True, False, True, True])


def test_refusals() -> None:
    with pytest.raises(DataError, match="wanted one outcome for each stated probability"):
        reliability([0.5], [True, False])
    with pytest.raises(DataError, match="no probability to judge"):
        reliability([], [])
    with pytest.raises(DataError, match=r"found logits \(2, 3\) and targets \(3,\)"):
        fit_temperature(np.zeros((2, 3)), np.zeros(3))
    with pytest.raises(DataError, match="no row to calibrate on"):
        calibration.scores(np.zeros((0, 3)), np.zeros(0), 1.0)
