"""Words, tokens and spans: each alignment against the text itself."""

import numpy as np
import pytest
from byte_tokens import byte_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities
from transformers import PreTrainedTokenizerBase

from attentune.tasks.tag import Tagging, align, spans_of, word_spans

TASK = Tagging(("O", "B-LOC", "I-LOC", "B-PER"))


def logits_of(tags: list[int | None]) -> np.ndarray:
    """One sure tag a position; None where no word begins."""
    z = np.zeros((len(tags), 4))
    for i, tag in enumerate(tags):
        z[i, tag or 0] = 50.0
    return z


def test_first_token_of_a_word_has_its_tag(tokenizer: PreTrainedTokenizerBase) -> None:
    row = {"tokens": ["Anna", "visits", "unseenly", "Paris", "."], "tags": ["B-PER", "O", "I-LOC", "B-LOC", "O"]}
    (features,) = TASK.encode(tokenizer, [row], 20)
    tokens = tokenizer.convert_ids_to_tokens(features.sequences[0]["input_ids"])
    assert tokens == ["[CLS]", "Anna", "visits", "un", "##seen", "##ly", "Paris", ".", "[SEP]"]
    assert features.target == [-100, 3, 0, 2, -100, -100, 1, 0, -100]
    assert [word.position for word in features.words] == [1, 2, 3, 6, 7]
    assert not features.truncated


def test_spans_of_plain_text(tokenizer: PreTrainedTokenizerBase) -> None:
    text = "Anna  lives in (Paris)."
    (features,) = TASK.encode(tokenizer, [{"text": text}], 20)
    assert [w.text for w in features.words] == ["Anna", "lives", "in", "(", "Paris", ")", "."]
    z = logits_of([None, 3, 0, 0, 0, 1, 2, 0, None])
    (answer,) = TASK.decode([z], [features])
    assert [(s["text"], s["label"]) for s in answer["spans"]] == [("Anna", "PER"), ("Paris )", "LOC")]
    assert text[answer["spans"][1]["start"] : answer["spans"][1]["end"]] == "Paris)"
    assert answer["spans"][0]["score"] == pytest.approx(1.0)
    assert answer["tags"] == ["B-PER", "O", "O", "O", "B-LOC", "I-LOC", "O"]


def test_words_that_are_cut_off_count_as_outside(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [
        {"tokens": ["Anna", "visits", "Paris"], "tags": ["B-PER", "O", "B-LOC"]},
        {"tokens": ["Anna", "visits"], "tags": ["B-PER", "O"]},
    ]
    cut, whole = TASK.encode(tokenizer, rows, 4)
    assert (cut.truncated, whole.truncated) == (True, False)
    assert cut.words[2].position is None
    assert cut.target == [-100, 3, 0, -100]
    answers = TASK.decode([logits_of([None, 3, 0, None])] * 2, [cut, whole])
    assert answers[0]["tags"] == ["B-PER", "O", "O"]
    assert TASK.score(answers, rows)["recall"] == pytest.approx(2 / 3)
    assert Tagging(("NOUN", "VERB")).outside == "NOUN"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("U.S. rate, 3.5%", ["U.S.", "rate", ",", "3.5", "%"]),
        ("don't e-mail a@b.com!", ["don't", "e-mail", "a@b.com", "!"]),
        ("Élan 日本 x", ["Élan", "日本", "x"]),
        ("  ", []),
        ("cafe\u0301-cre\u0300me U\u0308.S.", ["cafe\u0301-cre\u0300me", "U\u0308.S."]),
        ("हिन्दी ไม่มี, தமிழ்!", ["हिन्दी", "ไม่มี", ",", "தமிழ்", "!"]),
        ("نمی\u200cدید ok\u200d", ["نمی\u200cدید", "ok\u200d"]),
        ("I \u2764\ufe0f it 1\ufe0f\u20e3.", ["I", "\u2764\ufe0f", "it", "1\ufe0f\u20e3", "."]),
        ("\u0301a", ["\u0301", "a"]),
    ],
)
def test_words_of_plain_text(text: str, words: list[str]) -> None:
    spans = word_spans({"text": text})
    assert [word for word, _, _ in spans] == words
    assert all(text[start:end] == word for word, start, end in spans)


def test_tokens_that_count_the_space_before_a_word() -> None:
    words = word_spans({"tokens": ["ab", "c"]})
    assert words == [("ab", 0, 2), ("c", 3, 4)]
    assert [w.position for w in align(words, [(0, 0), (0, 1), (1, 2), (2, 4), (0, 0)])] == [1, 3]
    assert [w.position for w in align(words, [(0, 2), (2, 3), (3, 4)])] == [0, 2]
    assert [w.position for w in align(words, [(0, 2)])] == [0, None]


def test_words_that_share_a_token() -> None:
    words = byte_tokenizer(".|.", "..|.", '.|"', "C|+", "C+|+", over_words=True)
    (features,) = TASK.encode(words, [{"text": 'so... a." C++'}], 40)
    assert [w.text for w in features.words] == ["so", ".", ".", ".", "a", ".", '"', "C", "+", "+"]
    assert [w.position for w in features.words] == [0, 2, 2, 2, 4, 5, 5, 7, 7, 7]
    z = logits_of([0, 0, 0, 0, 0, 0, 0, 1])
    (answer,) = TASK.decode([z], [features], 20.0)
    assert [(s["text"], s["start"], s["end"]) for s in answer["spans"]] == [("C + +", 10, 13)]
    assert answer["tags"][-3:] == ["B-LOC", "I-LOC", "I-LOC"]
    assert not features.truncated
    sure = 1 / (1 + 3 * np.exp(-50 / 20))
    assert answer["score"] == pytest.approx(sure**5)  # a token is judged once: so ... a ." C++


def test_the_first_word_of_a_token_is_its_target() -> None:
    row = {"tokens": ["a", "b", "c"], "tags": ["B-LOC", "I-LOC", "B-PER"]}
    (features,) = TASK.encode(byte_tokenizer("a|Ġ", "aĠ|b", over_words=True), [row], 40)
    assert [w.position for w in features.words] == [0, 0, 2]
    assert features.target == [1, -100, 3]
    z = logits_of([1, None, 3])
    events = TASK.events([z], [features])
    assert events is not None
    assert (len(events[0]), events[1].tolist()) == (2, [1, 3])
    (answer,) = TASK.decode([z], [features])
    assert TASK.is_right(answer, row)


@pytest.mark.parametrize(("length", "cut"), [(5, False), (40, False), (4, True)])
def test_signs_that_the_tokenizer_drops_are_not_cut_off(
    tokenizer: PreTrainedTokenizerBase, length: int, cut: bool
) -> None:
    (features,) = TASK.encode(tokenizer, [{"text": "Anna \u200b visits Paris \u200b"}], length)
    assert [w.position for w in features.words] == [1, None, 2, None if cut else 3, None]
    assert features.truncated == cut
    (answer,) = TASK.decode([logits_of([None, 3, 0, 1, None])], [features])
    assert answer["tags"] == ["B-PER", "O", "O", "O" if cut else "B-LOC", "O"]
    assert answer["score"] == pytest.approx(0.0 if cut else 1.0)


TAGS = st.lists(st.sampled_from(["O", "B-X", "I-X", "B-Y", "I-Y"]), max_size=12)


@given(TAGS)
def test_spans_are_those_of_conlleval(tags: list[str]) -> None:
    assert [(name, a, b - 1) for a, b, name in spans_of(tags, ["O", "B-X", "I-X", "B-Y", "I-Y"])] == get_entities(tags)


def test_tags_without_entities_make_every_word_a_span() -> None:
    labels = ["NOUN", "VERB"]
    assert spans_of(["NOUN", "VERB"], labels) == [(0, 1, "NOUN"), (1, 2, "VERB")]


def test_no_span_is_labelled_o(tokenizer: PreTrainedTokenizerBase) -> None:
    task = Tagging(("O", "PER"))
    (features,) = task.encode(tokenizer, [{"tokens": ["Anna", "visits"]}], 20)
    for tags, spans in (([1, 0], ["PER"]), ([0, 0], []), ([1, 1], ["PER", "PER"])):
        (answer,) = task.decode([logits_of([None, *tags, None])[:, :2]], [features])
        assert [span["label"] for span in answer["spans"]] == spans
