"""Split conformal quantiles against the definition, against MAPIE's own sets, and the promise on exchangeable rows."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mapie.classification import SplitConformalClassifier
from sklearn.base import BaseEstimator, ClassifierMixin

from attentune.evaluation.conformal import COVERAGES, is_inside, least_rows, quantile, quantiles
from attentune.tasks.classify import Regression


@given(st.lists(st.floats(0, 1), min_size=1, max_size=120), st.sampled_from(COVERAGES))
def test_the_quantile_is_its_definition(scores: list[float], coverage: float) -> None:
    rank = math.ceil((len(scores) + 1) * coverage - 1e-9)
    wanted = sorted(scores)[rank - 1] if rank <= len(scores) else None
    assert quantile(scores, coverage) == (None if wanted is None else pytest.approx(wanted))


def test_too_few_rows_promise_nothing() -> None:
    assert [least_rows(c) for c in COVERAGES] == [4, 9, 19, 99]
    assert set(quantiles([0.1] * 18)) == {0.8, 0.9}
    assert quantiles([0.1] * 3) == {}


@pytest.mark.parametrize("coverage", [0.8, 0.9, 0.95])
def test_the_promise_is_kept_on_average_and_not_by_much_more(coverage: float) -> None:
    rng = np.random.default_rng(0)
    kept: list[float] = []
    for _ in range(200):
        strange = rng.exponential(size=400)
        at = quantile(strange[:100], coverage)
        assert at is not None
        kept.append(float(np.mean(strange[100:] <= at)))
    assert coverage - 0.01 < np.mean(kept) < coverage + 1 / 101 + 0.01


class Stored(ClassifierMixin, BaseEstimator):
    """Probabilities that are known already, as MAPIE wants to see them."""

    def __init__(self, classes: int = 4) -> None:
        self.classes = classes

    def fit(self, x: Any, y: Any) -> "Stored":
        self.classes_ = np.arange(self.classes)
        self.n_features_in_ = self.classes
        return self

    def predict_proba(self, x: Any) -> Any:
        return np.asarray(x)

    def predict(self, x: Any) -> Any:
        return np.asarray(x).argmax(1)


def test_sets_by_the_number_in_the_card_equal_those_of_mapie() -> None:
    rng = np.random.default_rng(0)
    p = rng.dirichlet([0.5] * 4, size=600)
    y = np.array([rng.choice(4, p=row) for row in p])
    known = SplitConformalClassifier(Stored().fit(p, y), confidence_level=0.9, conformity_score="lac", prefit=True)
    sets = known.conformalize(p[:300], y[:300]).predict_set(p[300:])[1][..., 0]
    at = quantile(1 - p[np.arange(300), y[:300]], 0.9)
    assert at is not None
    assert [[is_inside(1 - value, at) for value in row] for row in p[300:]] == sets.tolist()


def test_the_row_that_makes_the_quantile_lies_in_its_interval() -> None:
    task, row, answer = Regression(), {"label": 0.3}, {"value": 1.1}
    assert task.covers(task.with_set(answer, task.strangeness(answer, row)), row)  # 1.1 - (1.1 - 0.3) is above 0.3
