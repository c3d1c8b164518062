"""Each score against a count by hand or against the definition written as a loop."""

import math
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from attentune.errors import ConfigError, DataError
from attentune.evaluation import metrics
from attentune.evaluation.probabilities import sigmoid, softmax


def test_classification_by_hand() -> None:
    got = metrics.score("classification", ["a", "a", "b", "b"], ["a", "b", "b", "b"])
    assert got["accuracy"] == 0.75
    assert got["f1_a"] == pytest.approx(2 / 3)
    assert got["f1_b"] == pytest.approx(0.8)
    assert got["macro_f1"] == pytest.approx((2 / 3 + 0.8) / 2)
    tp, tn, fp, fn = 2, 1, 0, 1  # b is positive
    mcc = (tp * tn - fp * fn) / math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert got["matthews"] == pytest.approx(mcc)


def test_the_f1_of_both_classes_whether_they_occur_or_not() -> None:
    assert metrics.score("classification", ["a", "a"], ["a", "a"], ("a", "b")) == {
        "accuracy": 1.0, "macro_f1": 1.0, "matthews": 0.0, "f1_a": 1.0, "f1_b": 0.0,
    }  # fmt: skip
    assert "f1_a" not in metrics.score("classification", ["a", "b"], ["a", "a"], ("a", "b", "c"))


def test_constant_predictions_do_not_warn() -> None:
    assert metrics.score("classification", ["a", "a"], ["a", "b"])["matthews"] == 0.0
    assert metrics.score("classification", ["a"], ["a"])["accuracy"] == 1.0
    got = metrics.score("regression", [1.0, 1.0], [0.0, 2.0])
    assert got == {"pearson": 0.0, "spearman": 0.0, "mse": 1.0, "r2": 0.0}
    assert metrics.score("regression", [1.0, 2.0], [3.0, 3.0])["r2"] == 0.0
    assert set(metrics.score("regression", [0.1] * 3, [0.1] * 3).values()) == {0.0}  # their mean is not 0.1
    assert metrics.score("tagging", [["O", "O"]], [["B-X", "O"]])["precision"] == 0.0


def test_multilabel_by_hand() -> None:
    got = metrics.score("multilabel", [[1, 0], [1, 1], [0, 0]], [[1, 0], [0, 1], [0, 1]])
    assert got["micro_f1"] == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert got["macro_f1"] == pytest.approx((2 / 3 + 2 / 3) / 2)
    assert got["exact_match"] == pytest.approx(1 / 3)


def test_one_label_is_no_pair_of_classes() -> None:
    got = metrics.score("multilabel", [[1], [0], [0], [0]], [[1], [1], [0], [0]])
    assert got == {"micro_f1": pytest.approx(2 / 3), "macro_f1": pytest.approx(2 / 3), "exact_match": 0.75}
    assert metrics.score("multilabel", [[0]], [[0]]) == {"micro_f1": 0.0, "macro_f1": 0.0, "exact_match": 1.0}


@given(st.lists(st.tuples(*[st.booleans()] * 6), min_size=2, max_size=9))
def test_multilabel_equals_sklearn(rows: list[tuple[bool, ...]]) -> None:
    p, r = np.array(rows, dtype=int)[:, :3], np.array(rows, dtype=int)[:, 3:]
    got = metrics.score("multilabel", p.tolist(), r.tolist())
    for average in ("micro", "macro"):
        assert got[f"{average}_f1"] == pytest.approx(f1_score(r, p, average=average, zero_division=cast("Any", 0)))


@given(st.lists(st.tuples(st.integers(-50, 50), st.integers(-50, 50)), min_size=3, max_size=30))
def test_regression_equals_numpy(pairs: list[tuple[int, int]]) -> None:
    p, r = np.array(pairs, dtype=float).T
    got = metrics.score("regression", list(p), list(r))
    assert got["mse"] == pytest.approx(sum((a - b) ** 2 for a, b in pairs) / len(pairs))
    if p.std() > 0 and r.std() > 0:
        assert got["pearson"] == pytest.approx(np.corrcoef(p, r)[0, 1], abs=1e-12)
        ranks = [[sum(x < v for x in xs) + (sum(x == v for x in xs) + 1) / 2 for v in xs] for xs in (p, r)]
        assert got["spearman"] == pytest.approx(np.corrcoef(ranks[0], ranks[1])[0, 1], abs=1e-9)


def test_entities_by_hand() -> None:
    references = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "B-LOC"]]
    predictions = [["B-PER", "O", "O", "B-LOC"], ["B-PER", "B-LOC"]]
    got = metrics.score("tagging", predictions, references)
    assert got["precision"] == 0.5  # 4 found, 2 right
    assert got["recall"] == pytest.approx(2 / 3)
    assert got["f1"] == pytest.approx(4 / 7)
    assert got["accuracy"] == pytest.approx(4 / 6)


def test_tags_without_entities_are_scored_by_tag() -> None:
    got = metrics.score("tagging", [["NOUN", "VERB"]], [["NOUN", "NOUN"]])
    assert got == {"f1": pytest.approx(1 / 3), "accuracy": 0.5}
    # These rows alone do not tell that there are tags without a prefix.
    assert metrics.score("tagging", [["O"]], [["O"]], ("O", "PER")) == {"f1": 1.0, "accuracy": 1.0}
    with pytest.raises(ConfigError, match="no metric 'recall' for tagging; there are f1, accuracy"):
        metrics.check_name("tagging", "recall", ("O", "PER"))
    assert metrics.check_name("tagging", "recall", ("O", "B-PER")) == "recall"


def test_every_kind_has_its_main_metric() -> None:
    samples = {
        "classification": (["a"], ["b"]),
        "multilabel": ([[1]], [[1]]),
        "regression": ([1.0], [1.0]),
        "tagging": ([["B-X"]], [["B-X"]]),
        "question_answering": (["a"], [["a"]]),
        "multiple_choice": ([1], [0]),
        "generation": (["a text"], [["a text"]]),
    }
    assert set(samples) == set(metrics.MAIN)
    for kind, (p, r) in samples.items():
        assert metrics.MAIN[kind] in metrics.score(kind, p, r)


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="no task kind 'ranking'; the kinds are classification"):
        metrics.score("ranking", [], [])
    with pytest.raises(DataError, match="2 predictions for 1 references"):
        metrics.score("classification", ["a", "b"], ["a"])
    with pytest.raises(DataError, match="no rows to score"):
        metrics.score("classification", [], [])
    with pytest.raises(DataError, match="row 1 has 1 predicted and 2 reference tags"):
        metrics.score("tagging", [["O"]], [["O", "O"]])


@given(st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=8), st.floats(0.1, 10))
def test_probabilities(logits: list[float], temperature: float) -> None:
    z = np.array(logits)
    p, q = softmax(z, temperature), sigmoid(z, temperature)
    assert p.sum() == pytest.approx(1.0)
    assert p.argmax() == q.argmax() or np.isclose(q.max(), q[p.argmax()])
    assert ((q >= 0) & (q <= 1)).all()
    small = np.clip(z / temperature, -30, 30)
    assert np.allclose(sigmoid(small), 1 / (1 + np.exp(-small)))
