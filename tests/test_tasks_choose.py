"""Multiple choice: a sequence for each choice, one softmax over the choices of a row."""

import json
import math

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerBase

from attentune.tasks import task_from_card
from attentune.tasks.choose import MultipleChoice
from attentune.tasks.task import collate, pack

TASK = MultipleChoice()
ROWS = [
    {"text": "good film ?", "choices": ["not bad", "rain", "sun"], "label": 1},
    {"text": "who ?", "choices": ["Anna", "Paris"], "label": 0},
]


def test_each_choice_is_a_sequence(tokenizer: PreTrainedTokenizerBase) -> None:
    first, second = TASK.encode(tokenizer, ROWS, 16)
    words = [tokenizer.convert_ids_to_tokens(s["input_ids"]) for s in (*first.sequences, *second.sequences)]
    assert words[0] == "[CLS] good film ? [SEP] not bad [SEP]".split()
    assert [tokens[-2] for tokens in words] == ["bad", "rain", "sun", "Anna", "Paris"]
    assert (first.target, second.target) == (1, 0)
    assert not first.truncated
    assert TASK.encode(tokenizer, [], 16) == []


def test_what_is_asked_stands_with_the_choice(tokenizer: PreTrainedTokenizerBase) -> None:
    row = {"text": "the rain is long", "text_pair": "where ?", "choices": ["Paris", "London"]}
    (features,) = MultipleChoice(pair=True).encode(tokenizer, [row], 16)
    tokens = tokenizer.convert_ids_to_tokens(features.sequences[1]["input_ids"])
    assert tokens == "[CLS] the rain is long [SEP] where ? London [SEP]".split()
    assert features.target is None


def test_long_rows_say_that_they_are_cut(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [{"text": "the rain " * 10, "choices": ["sun", "rain"]}, {"text": "a " * 4, "choices": ["sun", "rain"]}]
    cut, exact = TASK.encode(tokenizer, rows, 8)
    assert [len(s["input_ids"]) for f in (cut, exact) for s in f.sequences] == [8] * 4
    assert (cut.truncated, exact.truncated) == (True, False)


def test_loss_is_the_softmax_over_the_choices_of_a_row(tokenizer: PreTrainedTokenizerBase) -> None:
    batch = collate(TASK, TASK.encode(tokenizer, ROWS, 16), tokenizer)
    assert batch["rows"].tolist() == [0, 0, 0, 1, 1]
    z = torch.tensor([1.0, 2.0, -1.0, 0.5, 3.0], requires_grad=True)
    packed = pack(z[:, None], batch["attention_mask"], batch["rows"])
    assert packed.shape == (2, 3, 1)
    got = TASK.loss(packed, batch["labels"])
    wanted = [
        math.log(math.exp(1) + math.exp(2) + math.exp(-1)) - 2,
        math.log(math.exp(0.5) + math.exp(3)) - 0.5,
    ]
    assert got.tolist() == pytest.approx(wanted, rel=1e-5)
    got.sum().backward()
    assert z.grad is not None
    assert z.grad.abs().min() > 0


def test_answers(tokenizer: PreTrainedTokenizerBase) -> None:
    features = TASK.encode(tokenizer, ROWS, 16)
    logits = [np.array([[0.0], [math.log(2)], [0.0]]), np.array([[math.log(3)], [0.0]])]
    first, second = TASK.decode(logits, features)
    assert first == {
        "choice": "rain",
        "index": 1,
        "score": pytest.approx(0.5),
        "probabilities": pytest.approx([0.25, 0.5, 0.25]),
        "truncated": False,
    }
    assert second["choice"] == "Anna"
    assert TASK.score([first, second], ROWS) == {"accuracy": 1.0}
    assert TASK.score([first, first], ROWS) == {"accuracy": 0.5}
    (flat, _) = TASK.decode(logits, features, temperature=2.0)
    assert flat["score"] == pytest.approx(math.sqrt(2) / (2 + math.sqrt(2)))
    task = MultipleChoice(pair=True)
    assert task_from_card(json.loads(json.dumps(task.to_card()))) == task
