"""The risk-coverage curve against a loop over thresholds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attentune.errors import ConfigError, DataError
from attentune.evaluation.selective import abstain, risk_coverage

ANSWERS = st.lists(st.tuples(st.sampled_from([0.1, 0.2, 0.5, 0.7, 0.9]), st.booleans()), min_size=1, max_size=40)


@given(ANSWERS)
def test_the_curve_equals_a_loop_over_thresholds(answers: list[tuple[float, bool]]) -> None:
    scores, right = [s for s, _ in answers], [y for _, y in answers]
    curve = risk_coverage(scores, right)
    levels = sorted(set(scores), reverse=True)
    assert curve.threshold.tolist() == levels
    area = before = 0.0
    for level, answered, risk in zip(levels, curve.answered, curve.risk, strict=True):
        kept = [y for s, y in answers if s >= level]
        assert answered == pytest.approx(len(kept) / len(answers))
        assert risk == pytest.approx(kept.count(False) / len(kept))
        found = abstain(scores, right, level)
        assert (found["answered"], found["risk"]) == (pytest.approx(answered), pytest.approx(risk))
        area, before = area + (answered - before) * risk, answered
    assert curve.area == pytest.approx(area)
    assert curve.risk_at(1.0) == pytest.approx(right.count(False) / len(right))


def test_a_perfect_order_has_no_area_and_a_random_one_that_of_all() -> None:
    assert risk_coverage([0.9, 0.8, 0.7], [True, True, True]).area == 0.0
    rng = np.random.default_rng(0)
    right = rng.random(20_000) < 0.7
    assert risk_coverage(rng.random(20_000), right).area == pytest.approx(0.3, abs=0.02)
    sure_where_right = risk_coverage(right + 0.1 * rng.random(20_000), right)
    assert sure_where_right.area < 0.1
    assert sure_where_right.risk_at(0.6) == 0.0


def test_abstaining_from_everything_risks_nothing() -> None:
    assert abstain([0.2, 0.3], [False, True], 0.9) == {"answered": 0.0, "risk": 0.0}


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="abstain_at is a probability between 0 and 1, found 80"):
        abstain([0.5], [True], 80)
    with pytest.raises(DataError, match="wanted one outcome for each score"):
        risk_coverage([0.5, 0.6], [True])
    with pytest.raises(DataError, match="no answer to judge"):
        risk_coverage([], [])
