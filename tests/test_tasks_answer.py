"""Answers in a context: windows, targets, the loss by its formula, the best passage by brute force, the threshold."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from byte_tokens import byte_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from transformers import BertTokenizer, PreTrainedTokenizerBase

from attentune.errors import DataError, UnsupportedError
from attentune.evaluation import metrics
from attentune.evaluation.answers import best_threshold, exact_match, word_f1
from attentune.tasks import passages as module
from attentune.tasks import task_from_card
from attentune.tasks.answer import QuestionAnswering
from attentune.tasks.passages import Windows, passages, tokens_of
from attentune.tasks.task import IGNORED, Features

TASK = QuestionAnswering(stride=3, answer_length=4)
OPEN = QuestionAnswering(stride=3, answer_length=4, unanswerable=True)
ROW: dict[str, Any] = {
    "question": "who visits the river ?",
    "context": "the rain is long . Anna visits the river in Paris , not in London .",
    "answers": [{"text": "Anna", "start": 19}],
}


def windows_of(task: QuestionAnswering, tokenizer: Any, row: dict[str, Any], length: int) -> Windows:
    (features,) = task.encode(tokenizer, [row], length)
    assert isinstance(features, Windows)
    return features


def test_a_context_is_cut_into_windows(tokenizer: PreTrainedTokenizerBase) -> None:
    features = windows_of(TASK, tokenizer, ROW, 16)
    assert len(features.sequences) == 3
    assert len(features) == len(features.offsets) == sum(len(s["input_ids"]) for s in features.sequences)
    assert not features.truncated
    first, second = (tokenizer.convert_ids_to_tokens(s["input_ids"]) for s in features.sequences[:2])
    assert first == "[CLS] who visits the river ? [SEP] the rain is long . Anna visits the [SEP]".split()
    assert second[6:11] == "[SEP] Anna visits the river".split()  # three tokens of the first window again
    window, firsts = features.places()
    assert firsts.tolist() == [0, 16, 32]
    assert window[:17].tolist() == [-1] * 7 + [0] * 8 + [-1, -1]
    assert [features.context[slice(*offset)] for offset in features.offsets if offset][5] == "Anna"


def test_targets_mark_every_window_that_holds_the_answer(tokenizer: PreTrainedTokenizerBase) -> None:
    target = windows_of(TASK, tokenizer, ROW, 16).target
    assert [i for i, bits in enumerate(target) if bits > 0] == [12, 16 + 7]
    assert {target[12], target[23]} == {3}
    assert target[:7] == [IGNORED] * 7
    assert target[7] == 0
    longer = {**ROW, "answers": [{"text": "the river in", "start": 31}]}
    assert [bits for bits in windows_of(TASK, tokenizer, longer, 16).target if bits > 0] == [1, 2]
    none = windows_of(OPEN, tokenizer, {**ROW, "answers": []}, 16).target
    assert [i for i, bits in enumerate(none) if bits > 0] == [0, 16, 32]
    assert windows_of(OPEN, tokenizer, ROW, 16).target[0] == 0
    plain = {key: value for key, value in ROW.items() if key != "answers"}
    assert windows_of(OPEN, tokenizer, plain, 16).target is None
    assert TASK.encode(tokenizer, [], 16) == []


WORDS = ["the", "rain", "Anna", "ticket", "q", "unseen", "9", "?", "x,", "\u200b", "日本", "é"]


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 18), st.integers(0, 90), st.integers(0, 6), st.integers(9, 30))
def test_windows_are_counted_before_they_are_made(
    tiny_bert: Path, asked: int, told: int, stride: int, length: int
) -> None:
    tokenizer = BertTokenizer.from_pretrained(tiny_bert)
    row = {"question": "sun " * asked, "context": "unseen " * told}
    task = QuestionAnswering(stride=stride)
    if asked > length - 3 - stride - 1:
        assert task.sequences(tokenizer, [row], length) == [1]
        with pytest.raises(DataError, match=f"has {asked} tokens"):
            task.encode(tokenizer, [row], length)
        return
    rows = [row, {**row, "context": "rain"}]
    assert task.sequences(tokenizer, rows, length) == [len(f.sequences) for f in task.encode(tokenizer, rows, length)]


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_every_answer_that_fits_is_in_a_window(tiny_bert: Path, data: st.DataObject) -> None:
    tokenizer = BertTokenizer.from_pretrained(tiny_bert)
    context = "".join(data.draw(st.lists(st.sampled_from([*WORDS, " ", "  "]), min_size=1, max_size=40)))
    row = {"question": "who ?", "context": context}
    stride, length = data.draw(st.integers(0, 6)), data.draw(st.integers(14, 30))
    task = QuestionAnswering(stride=stride)
    whole = tokenizer(context, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    spans = [span for span in whole if span[1] > span[0]]
    features = windows_of(task, tokenizer, row, length)
    assert all(len(s["input_ids"]) <= length for s in features.sequences)
    found = [offset for offset in features.offsets if offset]
    assert set(found) == set(spans)  # nothing of the context is lost, and offsets are those of the text alone
    if not spans:
        return
    first = data.draw(st.integers(0, len(spans) - 1))
    last = min(first + data.draw(st.integers(0, stride)), len(spans) - 1)
    start, end = spans[first][0], spans[last][1]
    labelled = {**row, "answers": [{"text": context[start:end], "start": start}]}
    marked = windows_of(task, tokenizer, labelled, length)
    starts = [o for o, bits in zip(marked.offsets, marked.target, strict=True) if bits > 0 and bits & 1]
    ends = [o for o, bits in zip(marked.offsets, marked.target, strict=True) if bits > 0 and bits & 2]
    assert len(starts) == len(ends) >= 1
    assert {o[0] for o in starts if o} == {start}
    assert {o[1] for o in ends if o} == {end}


def test_tokens_of_characters() -> None:
    window = [None, (0, 3), (3, 6), (6, 7), None]  # some tokenizers count the space before a word to its token
    assert tokens_of(window, 4, 6) == (2, 2)
    assert tokens_of(window, 0, 7) == (1, 3)
    assert tokens_of(window, 5, 9, is_last=False) is None
    assert tokens_of(window, 5, 9) == (2, 3)  # the text behind has no token
    later = [None, (3, 6), (6, 7)]
    assert tokens_of(later, 2, 6, is_first=False) is None
    assert tokens_of(later, 2, 6) == (1, 1)
    assert tokens_of([None, None], 0, 1) is None
    assert tokens_of([(0, 1), (5, 6)], 2, 4) is None


def test_loss_by_its_formula() -> None:
    rng = np.random.default_rng(0)
    z = rng.normal(size=(3, 6, 2))
    targets = [[IGNORED, 0, 1, 2, 0, 3], [3, 0, 0, IGNORED, 3, 0], [IGNORED, 0, 0, 0, 0, 0]]
    got = TASK.loss(torch.tensor(z), TASK.target_tensor([t[:6] for t in targets], 6))
    for row, target, value in zip(z, targets, got.tolist(), strict=True):
        parts: list[float] = []
        for output, bit in enumerate((1, 2)):
            total = sum(math.exp(row[i, output]) for i, bits in enumerate(target) if bits != IGNORED)
            right = sum(math.exp(row[i, output]) for i, bits in enumerate(target) if bits != IGNORED and bits & bit)
            parts.append(-math.log(right / total) if right else 0.0)
        assert value == pytest.approx(sum(parts) / 2, rel=1e-5)


def test_the_loss_of_a_row_without_a_right_place_has_no_gradient() -> None:
    z = torch.randn(2, 4, 2, requires_grad=True)
    TASK.loss(z, TASK.target_tensor([[IGNORED, 0, 0], [IGNORED, 3, 0, 0]], 4)).sum().backward()
    assert z.grad is not None
    assert z.grad[0].abs().sum() == 0
    assert z.grad[1, 1:].abs().min() > 0
    assert z.grad[1, 0].abs().sum() == 0


LOGITS = arrays.arrays(np.float64, st.tuples(st.integers(1, 14), st.just(2)), elements=st.integers(-40, 40))


@given(LOGITS, st.integers(1, 5), st.data())
def test_passages_by_brute_force(z: Any, longest: int, data: st.DataObject) -> None:
    n = len(z)
    window = np.array(sorted(data.draw(st.lists(st.integers(0, 2), min_size=n, max_size=n))))
    window[data.draw(st.lists(st.integers(0, n - 1), max_size=4))] = -1
    at = np.array(data.draw(st.lists(st.integers(0, n - 1), unique=True)), dtype=int)
    got = sorted(zip(*(part.tolist() for part in passages(z, window, longest, at)), strict=True))
    wanted = sorted(
        (float(z[i, 0] + z[j, 1]), i, j)
        for i in range(n)
        for j in range(i, min(i + longest, n))
        if window[i] == window[j] >= 0 and j in at
    )
    assert got == wanted


def merged_by_hand(z: Any, features: Windows, longest: int) -> dict[tuple[int, int], float]:
    """Each passage of characters and its score, in the order of the ends, then of the starts."""
    window, context = features.places()[0], features.context
    found: dict[tuple[int, int], float] = {}
    for i, first in enumerate(features.offsets):
        for j, last in enumerate(features.offsets[i : i + longest], i):
            if first is None or last is None or window[i] != window[j]:
                continue
            start = first[0] + len(context[first[0] :]) - len(context[first[0] :].lstrip())
            if start < last[1]:
                score = z[i, 0] + z[j, 1]
                found[start, last[1]] = np.logaddexp(found.get((start, last[1]), -np.inf), score)
    return {span: found[span] for span in sorted(found, key=lambda span: span[::-1])}


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_passages_merged_in_parts_are_those_merged_at_once(data: st.DataObject) -> None:
    words = st.sampled_from([*WORDS, " ", "  ", "\n", "\u3000"])
    context = "".join(data.draw(st.lists(words, min_size=1, max_size=30)))
    task = QuestionAnswering(stride=data.draw(st.integers(0, 9)), answer_length=data.draw(st.integers(1, 9)))
    features = windows_of(task, byte_tokenizer("Ġ|r"), {"question": "q", "context": context}, 12)
    z = np.random.default_rng(data.draw(st.integers(0, 99))).normal(size=(len(features), 2))
    whole = task.candidates(z, features)
    wanted = merged_by_hand(z, features, task.answer_length)
    assert [tuple(span) for span in whole.spans.tolist()] == list(wanted)
    assert whole.scores == pytest.approx(list(wanted.values()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PART", data.draw(st.integers(1, 60)))
        parts = task.candidates(z, features)
        assert np.array_equal(parts.spans, whole.spans)
        assert np.array_equal(parts.scores, whole.scores)


def test_a_context_of_spaces_is_read_once() -> None:
    features = windows_of(TASK, byte_tokenizer(), {"question": "q", "context": "a" + " " * 100_000}, 500)
    (answer,) = TASK.decode([np.zeros((len(features), 2))], [features])
    assert (answer["answer"], answer["start"], answer["end"]) == ("a", 0, 1)


def test_best_answer_by_hand(tokenizer: PreTrainedTokenizerBase) -> None:
    features = windows_of(TASK, tokenizer, ROW, 16)
    z = np.full((len(features), 2), -3.0)
    z[12, 0] = z[12, 1] = z[23, 0] = z[23, 1] = 4.0  # Anna, in both windows that hold it
    z[[i for i, offset in enumerate(features.offsets) if offset is None]] = 50.0  # never part of an answer
    (answer,) = TASK.decode([z], [features])
    assert (answer["answer"], answer["start"], answer["end"]) == ("Anna", 19, 23)
    assert answer["no_answer"] == 0.0
    window, _ = features.places()
    scores, first, last = passages(z, window, 4, np.arange(len(z)))
    weights = np.exp(scores - scores.max())
    both = [i for i in range(len(scores)) if (first[i], last[i]) in {(12, 12), (23, 23)}]
    assert answer["score"] == pytest.approx(weights[both].sum() / weights.sum())
    (flat,) = TASK.decode([z], [features], temperature=4.0)
    assert flat["answer"] == "Anna"
    assert flat["score"] < answer["score"]


def test_an_answer_does_not_begin_with_the_space_of_its_token() -> None:
    row = {"question": "q", "context": "in  Paris\n a"}
    (features,) = TASK.encode(byte_tokenizer("i|n", "P|a", "Pa|r", "Par|i", "Pari|s", "Ġ|Paris"), [row], 40)
    assert isinstance(features, Windows)
    assert features.offsets[1:] == ((0, 2), (2, 3), (3, 9), (9, 10), (10, 11), (11, 12))
    z = np.full((7, 2), -9.0)
    z[2, 0] = z[3] = 4.0
    (answer,) = TASK.decode([z], [features])
    assert (answer["answer"], answer["start"], answer["end"]) == ("Paris", 4, 9)
    found = TASK.candidates(z, features)
    at = found.spans.tolist().index([4, 9])
    assert found.scores[at] == pytest.approx(8.0 + math.log(2))  # with the space before it and without, one passage
    assert [10, 11] not in found.spans.tolist()
    (blank,) = TASK.encode(byte_tokenizer(), [{"question": "q", "context": "\n "}], 40)
    assert TASK.decode([np.zeros((3, 2))], [blank])[0]["no_answer"] == 1.0


def test_no_answer_against_a_threshold(tokenizer: PreTrainedTokenizerBase) -> None:
    features = windows_of(OPEN, tokenizer, ROW, 40)
    z = np.full((len(features), 2), -2.0)
    z[0], z[12] = 1.0, 2.0
    (kept,) = OPEN.decode([z], [features])
    assert kept["answer"] == "Anna"
    z[0] = 3.0
    (refused,) = OPEN.decode([z], [features])
    assert (refused["answer"], refused["start"], refused["end"]) == ("", None, None)
    assert refused["score"] == refused["no_answer"] > 0.5
    assert TASK.decode([z], [features])[0]["answer"] == "Anna"  # this one has never seen a question without an answer
    strict = QuestionAnswering(stride=3, answer_length=4, unanswerable=True, threshold=2.5)
    assert strict.decode([z], [features])[0]["answer"] == "Anna"
    fitted = OPEN.fitted([z], [features], [ROW])
    assert fitted.threshold > 2.0  # the margin: 2 * 3 - 2 * 2, and the other passages do not count
    assert fitted.decode([z], [features])[0]["answer"] == "Anna"
    assert OPEN.fitted([z], [features], [{**ROW, "answers": []}]).threshold < 2.0
    assert TASK.fitted([z], [features], [ROW]) is TASK
    assert task_from_card(json.loads(json.dumps(fitted.to_card()))) == fitted


def test_right_is_an_exact_match() -> None:
    for answer, row, right in [("anna!", ROW, True), ("", ROW, False), ("", {**ROW, "answers": []}, True)]:
        assert OPEN.is_right({"answer": answer}, row) is right


def test_a_context_without_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    features = windows_of(OPEN, tokenizer, {**ROW, "context": "\u200b", "answers": []}, 16)
    z = np.zeros((len(features), 2))
    for task in (TASK, OPEN):
        (answer,) = task.decode([z], [features])
        assert (answer["answer"], answer["no_answer"]) == ("", 1.0)
    assert OPEN.fitted([z], [features], [ROW]) == OPEN


@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=12))
def test_the_best_threshold_by_brute_force(rows: list[tuple[int, int, int]]) -> None:
    margins, given_scores, refused = zip(*rows, strict=True)

    def total(threshold: float) -> int:
        return sum(r if m > threshold else g for m, g, r in rows)

    best = best_threshold(margins, given_scores, refused)
    assert total(best) == max(total(t / 2) for t in range(-14, 15))


@pytest.mark.parametrize(
    ("answer", "references", "exact", "f1"),
    [
        ("The river!", ["a river"], 1.0, 1.0),
        ("river in Paris", ["the river"], 0.0, 2 / 4),
        ("the the rain rain", ["rain rain sun"], 0.0, 2 * 2 / 5),
        ("Paris", ["London", "in Paris", "Paris."], 1.0, 1.0),
        ("", [], 1.0, 1.0),
        ("the", [], 1.0, 1.0),
        ("Paris", [], 0.0, 0.0),
        ("", ["Paris"], 0.0, 0.0),
        ("Paris", ["?", "Paris"], 1.0, 1.0),
        ("U.S.", ["us"], 1.0, 1.0),
    ],
)
def test_exact_match_and_f1(answer: str, references: list[str], exact: float, f1: float) -> None:
    assert exact_match(answer, references) == exact
    assert word_f1(answer, references) == pytest.approx(f1)


def test_scores_apart() -> None:
    got = metrics.score("question_answering", ["Paris", "", "x"], [["Paris now"], [], []])
    assert got == {
        "f1": pytest.approx((2 / 3 + 1) / 3),
        "exact_match": pytest.approx(1 / 3),
        "unanswerable": 0.5,
        "answerable_f1": pytest.approx(2 / 3),
        "answerable_exact_match": 0.0,
    }
    assert metrics.score("question_answering", ["a b"], [["b"]]) == {"f1": 1.0, "exact_match": 1.0}
    assert metrics.score("question_answering", [""], [[]])["unanswerable"] == 1.0


def test_refusals(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(
        DataError, match="the question 'who visits the river \\?' has 5 tokens; with max_length 11 and "
    ):
        TASK.encode(tokenizer, [ROW], 11)
    assert TASK.encode(tokenizer, [ROW], 12)

    class Slow:
        is_fast = False

    with pytest.raises(UnsupportedError, match="answers need a fast tokenizer"):
        TASK.encode(Slow(), [ROW], 16)  # pyright: ignore[reportArgumentType]


def test_a_row_is_its_windows() -> None:
    assert len(Features(({"input_ids": [1, 2]}, {"input_ids": [3]}))) == 3
