"""Out-of-scope scores and thresholds against their definitions."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attentune.errors import DataError
from attentune.evaluation import scope

VALUES = st.lists(st.integers(-9, 9).map(float), min_size=1, max_size=15)


def test_scores_by_hand() -> None:
    logits = np.array([[0.0, math.log(3)], [5.0, 5.0]])
    assert scope.energy(logits) == pytest.approx([-math.log(4), -5 - math.log(2)])
    assert scope.doubt(logits) == pytest.approx([0.25, 0.5])


@settings(deadline=None)
@given(VALUES, VALUES)
def test_auroc_counts_pairs(inside: list[float], outside: list[float]) -> None:
    won = sum((b > a) + 0.5 * (b == a) for a in inside for b in outside)
    assert scope.auroc(inside, outside) == pytest.approx(won / len(inside) / len(outside))


@settings(deadline=None)
@given(VALUES, VALUES)
def test_no_threshold_has_a_larger_sum_of_recalls(inside: list[float], outside: list[float]) -> None:
    def recalls(at: float) -> float:
        return float(np.mean([b >= at for b in outside]) + np.mean([a < at for a in inside]))

    at = scope.threshold(inside, outside)
    assert recalls(at) == pytest.approx(max(recalls(t / 4) for t in range(-40, 44)))
    found = scope.detection(inside, outside, at)
    assert found["scope_recall"] + 1 - found["scope_false_alarms"] == pytest.approx(recalls(at))
    caught, alarms = sum(b >= at for b in outside), sum(a >= at for a in inside)
    assert found["scope_precision"] == pytest.approx(caught / max(caught + alarms, 1))


def test_the_threshold_lies_between_the_sides() -> None:
    assert scope.threshold([1.0, 2.0], [4.0, 5.0]) == 3.0


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5])
def test_without_rows_outside_a_share_of_those_inside_is_flagged(share: float) -> None:
    inside = np.random.default_rng(0).normal(size=1000)
    at = scope.threshold_without(inside, share)
    assert np.mean(inside >= at) == pytest.approx(share, abs=0.0011)
    assert np.mean(inside >= at) <= share


def test_the_better_score_is_chosen() -> None:
    rng = np.random.default_rng(0)
    inside, outside = rng.normal(size=(50, 3)) + 4, rng.normal(size=(50, 3))  # only the height tells them apart
    assert scope.choose_score(inside, outside) == "energy"
    inside = np.eye(3)[rng.integers(0, 3, 50)] * 9 - rng.normal(size=(50, 1)) * 50  # only the contrast does
    assert scope.choose_score(inside, outside) == "doubt"


def test_refusals() -> None:
    with pytest.raises(DataError, match="wanted rows inside and outside the scope, found 1 and 0"):
        scope.auroc([1.0], [])
    with pytest.raises(DataError, match="no validation row to choose a threshold by"):
        scope.threshold_without([], 0.1)
