"""Tasks on whole texts: tokens, targets, losses against the formula, answers, cards."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from attentune.errors import ConfigError, StoreError
from attentune.tasks import KINDS, Classification, MultiLabel, Regression, Tagging, Task, task_from_card, task_of
from attentune.tasks.answer import QuestionAnswering
from attentune.tasks.choose import MultipleChoice
from attentune.tasks.data import load_data
from attentune.tasks.generate import Generation
from attentune.tasks.task import collate, pack

TASKS: list[Task] = [
    Classification(("no", "yes"), pair=True),
    MultiLabel(("a", "b"), threshold=0.3),
    Regression(pair=True, mean=2.5, std=1.5),
    Tagging(("O", "B-X")),
    QuestionAnswering(stride=8, answer_length=5, unanswerable=True, threshold=-1.5),
    MultipleChoice(pair=True),
    Generation(decoder_only=True, prompt="Say {text}:", num_beams=2, max_new_tokens=9),
]


def test_every_kind_is_tested_here() -> None:
    assert {task.kind for task in TASKS} == set(KINDS)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.kind)
def test_card_and_back(task: Task) -> None:
    assert task_from_card(json.loads(json.dumps(task.to_card()))) == task


def test_wrong_cards() -> None:
    with pytest.raises(StoreError, match="names kind 'ranking'; the kinds are classification"):
        task_from_card({"kind": "ranking"})
    with pytest.raises(StoreError, match="of kind tagging has no 'labels'"):
        task_from_card({"kind": "tagging"})


def test_task_of_data() -> None:
    rows: list[dict[str, Any]] = [{"text": f"t{i}", "text_pair": "x", "label": float(i)} for i in range(5)]
    data = load_data({"train": rows, "validation": rows})
    assert task_of(data) == Regression(pair=True, mean=2.0, std=math.sqrt(2))
    tags = load_data([{"tokens": ["a", "b"], "tags": ["O", "B-X"]}] * 3)
    assert task_of(tags) == Tagging(("O", "B-X"))
    assert task_of(load_data([{"text": "x", "label": ["q"]}, {"text": "y", "label": []}])) == MultiLabel(("q",))
    asked = {"question": "x ?", "context": "a b", "answers": {"text": ["b"], "answer_start": [2]}}
    assert task_of(load_data([asked] * 2), stride=5, answer_length=3) == QuestionAnswering(stride=5, answer_length=3)
    none = {**asked, "answers": {"text": [], "answer_start": []}}
    assert task_of(load_data([none] * 2)) == QuestionAnswering(unanswerable=True)
    told = {"premise": "a", "question": "b", "choice1": "c", "choice2": "d", "label": 1}
    assert task_of(load_data([told] * 2)) == MultipleChoice(pair=True)


def test_texts_become_features(tokenizer: PreTrainedTokenizerBase) -> None:
    task = Classification(("neg", "pos"))
    rows = [{"text": "good film", "label": "pos"}, {"text": "the a " * 10}, {"text": "the a the a the a"}]
    long, cut, exact = task.encode(tokenizer, rows, max_length=8)
    assert tokenizer.convert_ids_to_tokens(long.sequences[0]["input_ids"]) == ["[CLS]", "good", "film", "[SEP]"]
    assert (long.target, cut.target) == (1, None)
    assert [f.truncated for f in (long, cut, exact)] == [False, True, False]
    assert [len(f) for f in (long, cut, exact)] == [4, 8, 8]
    assert task.encode(tokenizer, [], 8) == []


def test_pairs_have_two_segments(tokenizer: PreTrainedTokenizerBase) -> None:
    task = Classification(("neg", "pos"), pair=True)
    (features,) = task.encode(tokenizer, [{"text": "good", "text_pair": "bad film"}], max_length=10)
    (sequence,) = features.sequences
    assert tokenizer.convert_ids_to_tokens(sequence["input_ids"]) == "[CLS] good [SEP] bad film [SEP]".split()
    assert sequence["token_type_ids"] == [0, 0, 0, 1, 1, 1]


def test_collate_pads_at_the_right(tiny_bert: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert, padding_side="left")
    task = Tagging(("O", "B-X"))
    rows = [{"tokens": ["good"], "tags": ["B-X"]}, {"tokens": ["the", "film"], "tags": ["O", "O"]}]
    batch = collate(task, task.encode(tokenizer, rows, 8), tokenizer)
    expected = tokenizer.convert_tokens_to_ids(["[CLS]", "good", "[SEP]", "[PAD]"])
    assert batch["input_ids"][0].tolist() == expected
    assert batch["attention_mask"][0].tolist() == [1, 1, 1, 0]
    assert batch["labels"][0].tolist() == [-100, 1, -100, -100]
    assert "labels" not in collate(task, task.encode(tokenizer, [{"tokens": ["good"]}], 8), tokenizer)
    tokenizer.pad_token = None
    with pytest.raises(ConfigError, match="no padding token"):
        collate(task, task.encode(tokenizer, rows, 8), tokenizer)


def test_sequences_of_a_row_are_packed_one_after_the_other() -> None:
    mask = torch.tensor([[1, 1, 0], [1, 1, 1], [1, 0, 0]])
    rows = torch.tensor([0, 0, 1])
    z = torch.arange(3 * 3 * 2.0).reshape(3, 3, 2)
    least = torch.finfo(z.dtype).min
    assert pack(z, mask, rows).tolist() == [
        [*z[0, :2].tolist(), *z[1].tolist()],
        [z[2, 0].tolist(), *[[least, least]] * 4],
    ]
    assert pack(z[:, 0], mask, rows).tolist() == [z[:2, 0].tolist(), [z[2, 0].tolist(), [least, least]]]


def test_losses_are_means_of_rows() -> None:
    z = torch.tensor([[1.0, -2.0], [0.5, 3.0]])
    log_p = [[v - math.log(math.exp(a) + math.exp(b)) for v in (a, b)] for a, b in z.tolist()]
    got = Classification(("a", "b")).loss(z, torch.tensor([0, 1]))
    assert got.tolist() == pytest.approx([-log_p[0][0], -log_p[1][1]], rel=1e-5)
    got = MultiLabel(("a", "b")).loss(z, torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
    bce = [(math.log1p(math.exp(-1)) + math.log1p(math.exp(-2))) / 2]
    bce.append((math.log1p(math.exp(-0.5)) + math.log1p(math.exp(-3))) / 2)
    assert got.tolist() == pytest.approx(bce, rel=1e-5)
    got = Regression().loss(torch.tensor([[1.0], [3.0]]), torch.tensor([0.0, 1.0]))
    assert got.tolist() == [1.0, 4.0]
    tags = torch.tensor([[0, -100], [1, 0], [-100, -100]])
    got = Tagging(("a", "b")).loss(torch.stack([z, z, z]), tags)
    assert got.tolist() == pytest.approx([-log_p[0][0], -(log_p[0][1] + log_p[1][0]) / 2, 0.0], rel=1e-5)


def test_answers(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [{"text": "good"}]
    task = Classification(("neg", "pos"))
    features = task.encode(tokenizer, rows, 8)
    (answer,) = task.decode([np.array([0.0, math.log(3)])], features)
    assert answer == {
        "label": "pos",
        "score": pytest.approx(0.75),
        "probabilities": {"neg": pytest.approx(0.25), "pos": pytest.approx(0.75)},
        "truncated": False,
    }
    (flatter,) = task.decode([np.array([0.0, math.log(3)])], features, temperature=2.0)
    assert flatter["score"] == pytest.approx(math.sqrt(3) / (1 + math.sqrt(3)))
    many = MultiLabel(("a", "b"), threshold=0.4)
    (answer,) = many.decode([np.array([0.0, -5.0])], features)
    assert answer["labels"] == ["a"]
    assert answer["probabilities"]["b"] == pytest.approx(1 / (1 + math.exp(5)))
    (answer,) = Regression(mean=10.0, std=2.0).decode([np.array([1.5])], features)
    assert answer == {"value": 13.0, "truncated": False}
    json.dumps(answer)


def test_regression_targets_are_standardised(tokenizer: PreTrainedTokenizerBase) -> None:
    task = Regression.of([1.0, 3.0])
    assert (task.mean, task.std) == (2.0, 1.0)
    assert Regression.of([4.0, 4.0]).std == 1.0
    (features,) = task.encode(tokenizer, [{"text": "good", "label": 3.0}], 8)
    assert features.target == 1.0
    (answer,) = task.decode([np.array([features.target])], [features])
    assert answer["value"] == 3.0


def test_scores_of_answers() -> None:
    rows = [{"label": "a"}, {"label": "b"}]
    assert Classification(("a", "b")).score([{"label": "a"}, {"label": "a"}], rows)["accuracy"] == 0.5
    rows = [{"label": ["a"]}, {"label": []}]
    assert MultiLabel(("a", "b")).score([{"labels": ["a"]}, {"labels": ["b"]}], rows)["exact_match"] == 0.5
    assert Regression().score([{"value": 1.0}, {"value": 2.0}], [{"label": 3.0}, {"label": 4.0}])["mse"] == 4.0
