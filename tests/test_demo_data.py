"""The demo data: its files, its labels, the wall between train and test, and how little word counts can do with it."""

import gzip
import json
import os
import re
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import Pipeline, make_pipeline

from attentune import demo
from attentune.demo import run
from attentune.errors import DataError

SCRIPTS = Path(__file__).parents[1] / "scripts"
sys.path.insert(0, str(SCRIPTS))

from demo_prose import HOLE, Draw, Slots, join, tagged  # noqa: E402
from demo_sources import DEMO, INTENTS, KINDS, Pool, lines, read_messages, read_pool  # noqa: E402

CLASSIFIED = ("intent", "sentiment", "answered", "outcome")
# The best that TF-IDF of words and bigrams reaches, rounded up: a fact of the data, for others to compare with.
BAG_OF_WORDS = {"intent": 0.50, "sentiment": 0.60, "answered": 0.65, "outcome": 0.40}


@cache
def rows(task: str, split: str) -> list[dict[str, Any]]:
    file = demo.path(task, split)
    data = file.read_bytes()
    text = (gzip.decompress(data) if file.suffix == ".gz" else data).decode()
    return [json.loads(line) for line in text.splitlines()]


def texts(task: str, split: str) -> list[str]:
    return [f"{row['text']} {row.get('text_pair', '')}" for row in rows(task, split)]


@pytest.fixture(scope="module")
def pools() -> dict[str, Pool]:
    return {split: read_pool(split) for split in ("train", "test")}


def sentences(pool: Pool) -> dict[str, list[str]]:
    messages = [message for name in INTENTS for message in pool.messages[name]]
    return {
        "messages": [message.text for message in messages],
        "replies": [message.reply for message in messages] + [text for name in INTENTS for text in pool.evasions[name]],
        "sentiment": [text for clauses in pool.sentiment.values() for text in clauses],
        "urgency": [text for _, text in pool.urgency],
        "asides": pool.asides,
        "openers": pool.openers,
        "closings": pool.closings,
        "threads": [paragraph.text for paragraph in pool.threads],
        **{kind: pool.values[kind] for kind in KINDS},
    }


def test_the_files_are_what_the_script_writes_whatever_the_hash_seed() -> None:
    done = subprocess.run(
        [sys.executable, SCRIPTS / "assemble_demo.py", "--check"],
        env={**os.environ, "PYTHONHASHSEED": "7"}, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


@pytest.mark.parametrize("task", demo.TASKS)
def test_enough_rows_and_none_twice(task: str) -> None:
    assert len(rows(task, "train")) >= 600
    assert len(rows(task, "test")) >= 200
    written = [json.dumps(row) for split in ("train", "test") for row in rows(task, split)]
    assert len(set(written)) == len(written)


@pytest.mark.parametrize("task", demo.TASKS)
@pytest.mark.parametrize("split", ["train", "test"])
def test_every_row_has_the_columns_of_its_kind(task: str, split: str) -> None:
    columns = {"tagging": ["tokens", "tags"], "pair": ["text", "text_pair", "label"]}.get(
        demo.TASKS[task].kind, ["text", "label"]
    )
    for row in rows(task, split):
        assert list(row) == columns
        assert all(row[column] for column in columns if column != "label")
        assert "{" not in str(row.get("text")), "a slot was left open"


@pytest.mark.parametrize("task", CLASSIFIED)
@pytest.mark.parametrize("split", ["train", "test"])
def test_all_classes_are_equally_frequent(task: str, split: str) -> None:
    counts = Counter(row["label"] for row in rows(task, split))
    labels = demo.TASKS[task].labels
    assert labels is not None
    assert set(counts) == set(labels)
    assert len(set(counts.values())) == 1


def test_urgency_spreads_over_the_whole_scale() -> None:
    for split in ("train", "test"):
        values = [row["label"] for row in rows("urgency", split)]
        shares = np.histogram(values, bins=5, range=(0, 1))[0] / len(values)
        assert shares.min() > 0.08


def test_tags_are_valid_bio_and_every_kind_is_frequent() -> None:
    labels = demo.TASKS["entities"].labels
    assert labels is not None
    for split in ("train", "test"):
        found = Counter[str]()
        for row in rows("entities", split):
            assert len(row["tokens"]) == len(row["tags"])
            for before, tag in zip(["O", *row["tags"]], row["tags"], strict=False):
                assert tag in labels
                assert tag[0] != "I" or before[1:] == tag[1:]
            found.update(tag for tag in row["tags"] if tag[0] == "B")
        assert set(found) == {label for label in labels if label[0] == "B"}
        assert min(found.values()) >= 20


def test_threads_are_long() -> None:
    for split in ("train", "test"):
        lengths = [len(row["text"].split()) for row in rows("outcome", split)]
        assert min(lengths) >= 600
        assert max(lengths) <= 2000
        assert max(lengths) > 1600


def test_forty_messages_were_written_for_every_intent() -> None:
    for intent in INTENTS:
        assert len({message.text for message in read_messages(intent)}) >= 40


def test_no_sentence_and_no_value_is_in_both_splits(pools: dict[str, Pool]) -> None:
    train, test = sentences(pools["train"]), sentences(pools["test"])
    for part in train:
        assert test[part]
        shared = {text.casefold() for text in train[part]} & {text.casefold() for text in test[part]}
        assert not shared, part


@pytest.mark.parametrize("task", ["intent", "sentiment", "urgency", "answered", "outcome"])
def test_no_train_row_holds_a_test_message(task: str, pools: dict[str, Pool]) -> None:
    train = "\n".join(texts(task, "train")).lower()
    for message in (message for name in INTENTS for message in pools["test"].messages[name]):
        fixed = max(HOLE.sub("\0", message.text).split("\0"), key=len).strip().lower()
        assert len(fixed) < 20 or fixed not in train, message.text


def bag_of_words(model: Ridge | LogisticRegression) -> Pipeline:
    return make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), model)


@pytest.mark.parametrize("task", CLASSIFIED)
def test_word_counts_do_not_decide(task: str) -> None:
    model = bag_of_words(LogisticRegression(C=10, max_iter=1000))
    model.fit(texts(task, "train"), [row["label"] for row in rows(task, "train")])
    accuracy = model.score(texts(task, "test"), [row["label"] for row in rows(task, "test")])
    classes = len(demo.TASKS[task].labels or ())
    assert 1 / classes < accuracy <= BAG_OF_WORDS[task]


def test_word_counts_explain_little_of_the_urgency() -> None:
    model = bag_of_words(Ridge(alpha=1))
    model.fit(texts("urgency", "train"), [row["label"] for row in rows("urgency", "train")])
    assert model.score(texts("urgency", "test"), [row["label"] for row in rows("urgency", "test")]) < 0.25


def test_the_package_stays_small() -> None:
    assert sum(file.stat().st_size for file in DEMO.rglob("*") if file.is_file()) < 4_000_000


def test_what_does_not_exist_is_refused_with_what_does() -> None:
    with pytest.raises(DataError, match="'intents' was found; there are intent, sentiment"):
        demo.path("intents", "train")
    with pytest.raises(DataError, match="'dev' was found; there are train and test"):
        demo.path("intent", "dev")


def test_a_slot_keeps_its_value_and_an_article_fits_it() -> None:
    slots = Slots(Draw("x"), {"product": ["oven"], "order": ["#1", "#2"]})
    assert "".join(text for text, _ in slots.fill("a {product}, {order} not {order2}, a {product}")) in (
        "an oven, #1 not #2, an oven", "an oven, #2 not #1, an oven",
    )  # fmt: skip


def test_tags_follow_the_entity_through_punctuation() -> None:
    slots = Slots(Draw("x"), {"product": ["Kestrel 14 laptop"]})
    tokens, tags = tagged(join(Draw("x"), [slots.fill('My "{product}" (a [lamp|PRODUCT]).')]))
    assert tokens == ["My", '"', "Kestrel", "14", "laptop", '"', "(", "a", "lamp", ")", "."]
    assert tags == ["O", "O", "B-PRODUCT", "I-PRODUCT", "I-PRODUCT", "O", "O", "O", "B-PRODUCT", "O", "O"]


def test_marks_in_the_sources_are_well_formed() -> None:
    names = ["asides.txt", "openers.txt", "closings.txt", *(f"messages/{intent}.txt" for intent in INTENTS)]
    for line in (line for name in names for line in lines(name)):
        rest = HOLE.sub("", line)
        assert not re.search(r"[{}|\[\]]", rest), line
        assert all(hole["kind"] in KINDS for hole in HOLE.finditer(line) if hole["slot"]), line


def test_who_interrupts_the_demo_gets_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*given: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "train_all", interrupted)
    for name in ("transformers_logging", "keep_freed_memory", "torch"):  # which would stay as the demo sets them
        monkeypatch.setattr(run, name, MagicMock())
    with pytest.raises(SystemExit) as end:
        run.main(["--output", str(tmp_path)])
    assert end.value.code == 130
    assert capsys.readouterr().out.startswith("interrupted; the same command begins anew")
