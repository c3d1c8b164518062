"""Answers: mixed batches equal single ones, orders are kept, other backbones are refused."""

import json
import re
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from byte_tokens import byte_tokenizer
from serving.kit import adapter
from test_train import QUICK, rows_of
from transformers import AutoModel, AutoTokenizer, GPT2Config, GPT2Model

import attentune
from attentune.backbones import load_backbone
from attentune.batches import in_batches, logits_by_row, logits_by_sequence
from attentune.errors import ConfigError, DataError, StoreError
from attentune.predict import load_many, predict_many
from attentune.tasks import Classification, Features, Tagging
from attentune.training.train import train

TEXTS = ["good film", "bad rain the plot is not good", "sun", "Anna visits the river in Paris , very good !"]


@pytest.fixture(scope="module")
def folders(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One adapter for each kind of task, each of another method."""
    where = tmp_path_factory.mktemp("adapters")
    pairs = {
        "tone": ("classification", "pasta"),
        "entails": ("pair", "kernel_mix"),
        "topics": ("multilabel", "tiny_attention"),
        "stars.v1": ("regression", "attempt"),
        "names": ("tagging", "prefix_propagation"),
        "asked": ("question_answering", "tiny_attention"),
        "best": ("multiple_choice", "kernel_mix"),
    }
    return {
        name: train(rows_of(kind), method, where / name, str(tiny_bert), **QUICK).folder
        for name, (kind, method) in pairs.items()
    }


def single(folders: dict[str, Path]) -> dict[str, Path]:
    return {name: folder for name, folder in folders.items() if name not in ("entails", "asked", "best")}


def near(a: Any, b: Any) -> bool:
    """Equal, numbers to 1e-5."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(near(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(near, a, b))
    return a == pytest.approx(b, abs=1e-5) if isinstance(a, float) else a == b


def test_one_text_through_many_tasks_equals_each_alone(folders: dict[str, Path]) -> None:
    answers = predict_many(single(folders), TEXTS, batch_size=5)
    for name, folder in single(folders).items():
        alone = attentune.load(folder).predict(TEXTS, batch_size=1)
        assert near([answer[name] for answer in answers], alone)


def test_each_row_its_own_task(folders: dict[str, Path]) -> None:
    predictor = load_many(folders)
    tasks = ["names", "entails", "asked", "tone", "stars.v1", "best", "tone", "topics", "asked", "best"]
    long = ("who visits ?", f"{TEXTS[1]} . {TEXTS[3]} " * 4)
    inputs = [TEXTS[3], (TEXTS[0], TEXTS[1]), long, TEXTS[2], TEXTS[1], ("film ?", ["good", "not good", "the"]),
              TEXTS[1], TEXTS[0], ("where ?", TEXTS[3]), ("rain ?", "sun", "the river in Paris")]  # fmt: skip
    mixed = predict_many(predictor, inputs, tasks)
    for name, text, answer in zip(tasks, inputs, mixed, strict=True):
        assert near(answer, attentune.load(folders[name]).predict([text])[0])
    kinds = [next(key for key in answer if key != "truncated") for answer in mixed]
    assert kinds == "spans label answer label value choice label labels answer choice".split()
    assert len(mixed[5]["probabilities"]) == 3
    assert near(predict_many(predictor, inputs, tasks, batch_size=2), mixed)


def test_threads_share_an_adapter(folders: dict[str, Path]) -> None:
    """Batches of one shape, whose special tokens and padding stand elsewhere."""
    adapter = attentune.load(single(folders)["tone"])
    texts = [[words * short, "sun " * 40] for short, words in ((1, "good "), (30, "bad "))]
    wanted = [adapter.predict(some) for some in texts]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(adapter.predict, texts * 60))
    finally:
        sys.setswitchinterval(before)
    assert all(near(answer, wanted[i % 2]) for i, answer in enumerate(found))


def test_predictions_are_repeatable_bit_for_bit(folders: dict[str, Path]) -> None:
    adapter = attentune.load(folders["tone"])
    assert adapter.predict(TEXTS) == adapter.predict(TEXTS)
    assert adapter.predict([]) == []


def test_forms_of_input(folders: dict[str, Path]) -> None:
    tone, entails, names = (attentune.load(folders[name]) for name in ("tone", "entails", "names"))
    assert near(tone.predict([{"text": TEXTS[0], "label": "?"}]), tone.predict([TEXTS[0]]))
    pair = entails.predict([("good film", "the plot")])
    assert near(entails.predict([["good film", "the plot"]]), pair)
    assert near(entails.predict([{"text": "good film", "text_pair": "the plot"}]), pair)
    words = names.predict([["Anna", "visits", "Paris"]])
    assert near(names.predict([{"tokens": ["Anna", "visits", "Paris"]}]), words)
    assert near(names.predict(["Anna visits Paris"]), words)
    assert near(names.predict([{"text": "Anna visits Paris"}]), words)
    asked, best = attentune.load(folders["asked"]), attentune.load(folders["best"])
    (answer,) = asked.predict([("where ?", "Anna visits Paris")])
    assert near(asked.predict([{"context": "Anna visits Paris", "question": "where ?", "answers": None}]), [answer])
    if answer["answer"]:
        assert "Anna visits Paris"[answer["start"] : answer["end"]] == answer["answer"]
    choice = best.predict([("where ?", ["Paris", "sun"])])
    assert near(best.predict([["where ?", "Paris", "sun"]]), choice)
    assert near(best.predict([{"question": "where ?", "choices": ["Paris", "sun"]}]), choice)
    assert near(best.predict([{"text": "where ?", "choices": ["Paris", "sun"], "label": 9}]), choice)


@pytest.mark.parametrize(
    ("task", "item", "match"),
    [
        ("tone", ("a", "b"), "input 2: task 'tone' wants one text, found ('a', 'b')"),
        ("tone", "a \ud800", "input 2: wanted a text in UTF-8, found half a character, '\\ud800'"),
        ("names", ["a", "\udce9"], "input 2: wanted a text in UTF-8, found half a character"),
        ("best", ("a", "b", "\ud800"), "input 2: wanted a text in UTF-8, found half a character"),
        ("tone", 7, "input 2: task 'tone' wants one text, found 7"),
        ("tone", {"texts": "a"}, "input 2: wanted text, found texts"),
        ("entails", "a", "input 2: task 'entails' wants a pair of texts (text + text_pair), found 'a'"),
        ("entails", {"text": "a"}, "input 2: wanted text + text_pair, found text"),
        ("asked", "a", "input 2: task 'asked' wants a question and a context, found 'a'"),
        ("asked", ("a",), "input 2: task 'asked' wants a question and a context, found ('a',)"),
        ("asked", {"question": "a"}, "input 2: wanted question + context, found question"),
        ("asked", ("a", " "), "input 2, column 'context': the text is empty"),
        ("best", "a", "input 2: task 'best' wants a text and the choices, found 'a'"),
        ("best", ("a", "b"), "input 2: wanted at least two choices, found 1"),
        ("best", {"text": "a", "choices": ["b", None]}, "input 2: wanted a text as choice 2, found nothing"),
        ("best", {"text": "a"}, "input 2: wanted question + choices, found text"),
        ("names", [], "input 2: task 'names' wants a text or a list of words, found []"),
        ("names", 3, "input 2: task 'names' wants a text or a list of words, found 3"),
    ],
)
def test_wrong_inputs(folders: dict[str, Path], task: str, item: Any, match: str) -> None:
    good: Any = {"asked": ("a", "b"), "best": ("a", "b", "c"), "entails": ("a", "b")}.get(task, "a")
    with pytest.raises(DataError, match=re.escape(match)):
        attentune.load(folders[task]).predict([good, item])


def test_an_error_does_not_give_a_long_input_again(folders: dict[str, Path]) -> None:
    for task, item in (("tone", ["x" * 9_999]), ("entails", "x" * 9_999), ("asked", {"x" * 9_999: 1})):
        with pytest.raises(DataError) as refused:
            attentune.load(folders[task]).predict([item])
        assert len(str(refused.value)) < 200


def test_wrong_calls(folders: dict[str, Path]) -> None:
    tone = attentune.load(folders["tone"])
    with pytest.raises(DataError, match="wanted a list of inputs, found one text"):
        tone.predict("a text")
    with pytest.raises(ConfigError, match="at least one row, found batch_size=0"):
        tone.predict(["a"], batch_size=0)
    with pytest.raises(DataError, match="2 inputs and 1 tasks"):
        predict_many(tone.predictor, ["a", "b"], tasks=["tone"])
    with pytest.raises(ConfigError, match="no task 'tune'; loaded are tone"):
        predict_many(tone.predictor, ["a"], tasks=["tune"])
    with pytest.raises(ConfigError, match="no adapter given"):
        predict_many({}, ["a"])
    with pytest.raises(DataError, match="wanted a list of inputs"):
        predict_many(tone.predictor, "a text")


def test_a_text_without_tokens(tmp_path: Path) -> None:
    """Where the tokenizer adds none of its own, alone and among others."""
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(tmp_path / "base")
    shape = GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=64)
    GPT2Model(shape).save_pretrained(tmp_path / "base")
    base = str(tmp_path / "base")
    one = attentune.load(adapter(load_backbone(base), tmp_path / "one", "kernel_mix", pooling="last"), base)
    for texts in ([""], ["", "good film"]):
        with pytest.raises(DataError, match="wanted a text of at least one token, found an empty one"):
            one.predict(texts)


def test_words_in_one_cell_are_those_of_training(folders: dict[str, Path]) -> None:
    names = attentune.load(folders["names"])
    (answer,) = names.predict([{"tokens": "Anna's river, Paris!"}])
    assert answer["words"] == ["Anna's", "river,", "Paris!"]
    (answer,) = names.predict([{"text": "Anna's river, Paris!"}])
    assert answer["words"] == ["Anna's", "river", ",", "Paris", "!"]
    with pytest.raises(DataError, match="wants a text or a list of words"):
        names.predict([{"tokens": " "}])


def test_rows_out_of_scope_alone_cannot_be_judged(tiny_bert: Path, tmp_path: Path) -> None:
    rows = rows_of("classification", 16)
    strange = [{"text": "who lives in the city ?", "label": "other"}] * 3
    data = {"train": rows, "validation": [*rows, *strange]}
    options: dict[str, Any] = {**QUICK, "epochs": 1, "out_of_scope": "other"}
    made = train(data, "pasta", tmp_path / "a", str(tiny_bert), **options)
    with pytest.raises(DataError, match="every row is of the out-of-scope class 'other'; others are needed"):
        attentune.load(made.folder).evaluate(strange)
    with pytest.raises(DataError, match="row 4 has label 'odd', which training does not know: neg, pos"):
        attentune.load(made.folder).evaluate([*strange, {"text": "sun", "label": "odd"}])


def test_truncation_is_flagged(folders: dict[str, Path]) -> None:
    answers = predict_many(single(folders), ["good " * 40, "good"])
    assert all(answer["truncated"] for answer in answers[0].values())
    assert not any(answer["truncated"] for answer in answers[1].values())


def test_another_backbone_is_refused(folders: dict[str, Path], tiny_bert: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_bert, tmp_path / "copy")
    attentune.load(folders["tone"], backbone=str(copy))
    model = AutoModel.from_pretrained(copy)
    with torch.no_grad():
        model.embeddings.word_embeddings.weight[0] += 1.0
    model.save_pretrained(copy)
    with pytest.raises(StoreError, match=r"'tone' was trained on .* with fingerprint \w+-float32-\w+; the weights at"):
        attentune.load(folders["tone"], backbone=str(copy))
    card = folders["tone"] / "task.json"
    other = shutil.copytree(folders["tone"], tmp_path / "other")
    moved = json.loads(card.read_text())
    moved["backbone"]["id"] = "someone/else"
    (other / "task.json").write_text(json.dumps(moved))
    with pytest.raises(StoreError, match="belong to different backbones"):
        predict_many({"a": folders["tone"], "b": other}, ["x"])
    predict_many({"a": folders["tone"], "b": other}, ["x"], backbone=str(tiny_bert))


def test_unknown_method(folders: dict[str, Path], tmp_path: Path) -> None:
    other = shutil.copytree(folders["tone"], tmp_path / "other")
    card = json.loads((other / "task.json").read_text())
    (other / "task.json").write_text(json.dumps({**card, "method": "sixth"}))
    with pytest.raises(StoreError, match="uses method 'sixth'; known are tiny_attention"):
        attentune.load(other)


def test_evaluate_reads_what_predict_does_not(folders: dict[str, Path], tmp_path: Path) -> None:
    rows = rows_of("classification", 12)
    adapter = attentune.load(folders["tone"])
    scores = adapter.evaluate(rows)
    right = [
        a["label"] == row["label"] for a, row in zip(adapter.predict([r["text"] for r in rows]), rows, strict=True)
    ]
    assert scores["accuracy"] == pytest.approx(sum(right) / 12)
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps({"sentence": r["text"], "intent": r["label"]}) for r in rows))
    assert adapter.evaluate(file) == scores
    with pytest.raises(DataError, match="row 1 has label 'meh', which training does not know: neg, pos"):
        adapter.evaluate([{"text": "x", "label": "meh"}])
    with pytest.raises(DataError, match="no split 'test'; the splits are train"):
        adapter.evaluate(file, split="test")
    with pytest.raises(DataError, match=r"have question \+ answer -> label, and the task was trained on text -> label"):
        adapter.evaluate([{"question": "who ?", "answer": "Anna", "label": "pos"}])
    with pytest.raises(DataError, match=r"premise -> label, and the task was trained on text \+ text_pair -> label"):
        attentune.load(folders["entails"]).evaluate([{"premise": "good", "hyp": "bad", "label": "yes"}])


def test_results_keep_the_order_of_the_items() -> None:
    seen: list[list[str]] = []

    def run(items: Any) -> list[str]:
        seen.append(list(items))
        return [item.upper() for item in items]

    assert in_batches(["aa", "b", "cccc", "ddd", "e"], len, run, 2) == ["AA", "B", "CCCC", "DDD", "E"]
    assert seen == [["cccc", "ddd"], ["aa", "b"], ["e"]]


def test_padded_logits_become_rows() -> None:
    sequence, token = Classification(("a", "b", "c")), Tagging(("O", "B-X"))
    short, long = {"input_ids": [1, 2]}, {"input_ids": [1, 2, 3]}
    z = np.arange(2 * 3 * 4.0).reshape(2, 3, 4)
    of_text, of_words = logits_by_sequence(z, [short, long], [sequence, token])
    assert of_text.tolist() == [0, 1, 2]
    assert of_words.tolist() == [[12, 13], [16, 17], [20, 21]]
    of_texts = logits_by_sequence(z[:, 0], [short, long], [sequence, sequence])
    assert [row.tolist() for row in of_texts] == [[0, 1, 2], [12, 13, 14]]
    features = [Features((short,)), Features((long,))]
    assert [row.tolist() for row in logits_by_row(z[:, 0], features, sequence)] == z[:, 0].tolist()
    assert [row.tolist() for row in logits_by_row(z, features, token)] == [z[0, :2].tolist(), z[1].tolist()]


def test_the_tokenizer_side_of_padding_does_not_matter(
    folders: dict[str, Path], tiny_bert: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(tiny_bert, tmp_path / "left")
    AutoTokenizer.from_pretrained(copy, padding_side="left").save_pretrained(copy)
    left = attentune.load(folders["names"], backbone=str(copy)).predict(TEXTS)
    assert near(left, attentune.load(folders["names"]).predict(TEXTS))
