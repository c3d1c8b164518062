"""BLEU, chrF and ROUGE: each against sacrebleu's and rouge-score's own small cases, worked by hand."""

import math

import pytest

from attentune.errors import DataError
from attentune.evaluation.metrics import score


def test_equal_texts_have_every_score() -> None:
    texts = ["the cat sat on the mat", "a dog ran away from it"]
    found = score("generation", texts, [[text] for text in texts])
    assert found == pytest.approx({"bleu": 100, "chrf": 100, "rouge1": 100, "rouge2": 100, "rougeL": 100})


def test_by_hand() -> None:
    found = score("generation", ["a b c d x"], [["a b c d e"]])
    # Precisions 4/5, 3/4, 2/3, 1/2; no brevity penalty.
    assert found["bleu"] == pytest.approx(100 * math.prod([4 / 5, 3 / 4, 2 / 3, 1 / 2]) ** 0.25)
    assert found["rouge1"] == pytest.approx(80)
    assert found["rouge2"] == pytest.approx(75)
    assert found["rougeL"] == pytest.approx(80)


def test_rows_may_have_unequal_numbers_of_references() -> None:
    references = [["nothing in common here", "a b c d e"], ["f g h i j"]]
    assert score("generation", ["a b c d e", "f g h i j"], references)["bleu"] == pytest.approx(100)
    found = score("generation", ["a b", "f g h i j"], references)
    assert found["rouge1"] == pytest.approx(100 * (2 * 1 * 0.4 / 1.4 + 1) / 2)


def test_nothing_written() -> None:
    assert score("generation", [""], [["a text"]]) == {"bleu": 0, "chrf": 0, "rouge1": 0, "rouge2": 0, "rougeL": 0}
    with pytest.raises(DataError, match="1 predictions for 2 references"):
        score("generation", ["a"], [["a"], ["b"]])
