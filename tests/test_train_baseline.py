"""What every training has: one device, and the bag-of-words yardstick, which learns what words alone can tell."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainingArguments

from attentune.training.baseline import baseline
from attentune.training.loop import arguments
from attentune.training.recipe import TrainingOptions


def test_one_device_of_all_that_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Trainer by itself would deal each batch out to both: nn.DataParallel, whose replicas share hooks."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert TrainingArguments(str(tmp_path)).n_gpu == 2
    args = arguments(tmp_path, TrainingOptions(), "loss")
    assert args.n_gpu == 1
    assert args.train_batch_size == args.per_device_train_batch_size


def rows_of(label: Any) -> list[dict[str, Any]]:
    return [{"text": f"word{i} {'good' if i % 2 else 'bad'} film", "label": label(i)} for i in range(40)]


def test_classes() -> None:
    rows = rows_of(lambda i: "pos" if i % 2 else "neg")
    assert baseline("classification", rows, rows[:10], ("neg", "pos"))["accuracy"] == 1.0


def test_one_class_left_for_training() -> None:
    rows = rows_of(lambda i: "pos" if i % 2 else "neg")
    scores = baseline("classification", rows[::2], rows[:10], ("neg", "pos"))
    assert scores["accuracy"] == 0.5
    assert scores["f1_pos"] == 0.0


def test_numbers() -> None:
    rows = rows_of(lambda i: float(i % 2))
    assert baseline("regression", rows, rows[:10], ())["pearson"] > 0.95


def test_sets_of_classes_with_one_in_all_and_one_in_none() -> None:
    rows = rows_of(lambda i: ["all", "pos"] if i % 2 else ["all"])
    scores = baseline("multilabel", rows, rows[:10], ("all", "none", "pos"))
    assert scores["exact_match"] == 1.0
    assert baseline("multilabel", rows[:20:2], rows[:10:2], ("all",))["exact_match"] == 1.0


def test_pairs_with_shared_words() -> None:
    texts = ["red river", "blue sun", "long play", "good plot", "old town", "big tree"] * 5
    rows = [
        {"text": text, "text_pair": text if i % 2 else "rain now", "label": "same" if i % 2 else "other"}
        for i, text in enumerate(texts)
    ]
    assert baseline("classification", rows, rows[:10], ("other", "same"))["accuracy"] == 1.0
    without_words = [{"text": "\u200b", "text_pair": "x", "label": row["label"]} for row in rows]
    assert baseline("classification", without_words, rows[:2], ("other", "same"))["accuracy"] == 0.5


def test_answers_are_what_the_question_does_not_say() -> None:
    context = "The river is long. Anna visits the old town. It rains."
    row = {"question": "Who visits?", "context": context, "answers": [{"text": "the old town", "start": 31}]}
    assert baseline("question_answering", [], [row], ())["f1"] == 1.0
    assert baseline("question_answering", [], [{**row, "context": "?", "answers": []}], ())["f1"] == 1.0


def test_choices() -> None:
    rows = [{"text": f"film{i}", "choices": ["a bad one", "a good one", "rain"], "label": 1} for i in range(20)]
    assert baseline("multiple_choice", rows, rows[:3], ())["accuracy"] == 1.0
    asked = [{**row, "text_pair": "what?"} for row in rows]
    assert baseline("multiple_choice", asked, asked[:3], ())["accuracy"] == 1.0


def test_tags() -> None:
    rows = [{"tokens": ["Anna", "lives", "in", city], "tags": ["O", "O", "O", "B-LOC"]} for city in ("Rome", "Oslo")]
    assert baseline("tagging", rows * 5, [{**rows[0], "tokens": ["Bob", "is", "in", "Bonn"]}], ())["f1"] == 1.0
    only = [{"tokens": ["a", "b"], "tags": ["O", "O"]}]
    assert baseline("tagging", only, rows[:1], ())["f1"] == 0.0
