"""The engine: answers equal those of each adapter alone, and what fails fails alone."""

import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_predict import near
from tokenizers.processors import TemplateProcessing
from writers import WRITERS, tokenizer_of

import attentune
from attentune.backbones import load_backbone
from attentune.errors import ConfigError, DataError, OverloadedError, StoreError, UnknownTaskError, UnsupportedError
from attentune.serving import Ask, Bank, Engine
from attentune.serving.batcher import Batcher
from attentune.serving.engine import Ran
from attentune.tasks.answer import QuestionAnswering
from attentune.tasks.choose import MultipleChoice
from attentune.tasks.verbalise import Cloze
from serving.kit import adapter

TEXTS = ["good film", "bad rain the plot is not good", "sun", "Anna visits the river in Paris , very good !"]
FORMS: dict[str, dict[str, Any]] = {
    "tone": {"method": "pasta", "labels": 3},
    "topic": {"method": "kernel_mix", "labels": 5, "pooling": "cls"},
    "names": {"method": "prefix_propagation", "labels": 4, "kind": "token", "length": 3},
    "third": {"method": "attempt", "labels": 2, "length": 2, "sources": 2, "bottleneck": 4},
}


@pytest.fixture(scope="module")
def folders(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    where = tmp_path_factory.mktemp("adapters")
    return {
        name: adapter(load_backbone(str(tiny_bert)), where / name, seed=i, **form)
        for i, (name, form) in enumerate(FORMS.items())
    }


@pytest.fixture
def engine(tiny_bert: Path, folders: dict[str, Path]) -> Iterator[Engine]:
    with Engine.load(str(tiny_bert)) as engine:
        for name, folder in folders.items():
            engine.bank.add(name, folder)
        yield engine


def alone(folder: Path, texts: list[str], backbone: Path) -> list[Any]:
    return attentune.load(folder, str(backbone)).predict(texts, batch_size=1)


def test_mixed_answers_equal_adapters_alone(engine: Engine, folders: dict[str, Path], tiny_bert: Path) -> None:
    asks = [Ask(name, text) for text in TEXTS for name in folders]
    found = engine.answer(asks)
    for name, folder in folders.items():
        mine = [answer for ask, answer in zip(asks, found, strict=True) if ask.task == name]
        assert near(mine, alone(folder, TEXTS, tiny_bert))


def test_answers_do_not_depend_on_the_batch(engine: Engine, folders: dict[str, Path]) -> None:
    asks = [Ask(name, text) for text in TEXTS for name in folders]
    together = engine.answer(asks)
    one_by_one = [engine.answer([ask])[0] for ask in asks]
    assert near(together, one_by_one)


def test_weights_of_mixed_prompts_are_those_of_each_adapter_alone(
    engine: Engine, tiny_bert: Path, tmp_path: Path
) -> None:
    base = load_backbone(str(tiny_bert))
    shape: dict[str, Any] = {"method": "attempt", "labels": 3, "length": 2, "sources": 2, "bottleneck": 4}
    # The same sources under other names share a shelf.
    folders = {
        name: adapter(base, tmp_path / name, seed=7, source_names=names, **shape)
        for name, names in (("named", ["nli", "stars"]), ("renamed", ["a", "b"]))
    }
    for name, folder in folders.items():
        engine.bank.add(name, folder)
    asks = [Ask(name, text, attention=name in folders) for text in TEXTS for name in ("tone", *folders, "names")]
    found = engine.answer(asks)
    for name, folder in folders.items():
        mine = [answer["attention"] for ask, answer in zip(asks, found, strict=True) if ask.task == name]
        assert near(mine, attentune.load(folder, str(tiny_bert)).attention(TEXTS))
        assert all(sum(weights.values()) == pytest.approx(1.0, abs=1e-5) for weights in mine)
    assert [list(a["attention"]) for a in found[1:3]] == [["nli", "stars", "target"], ["a", "b", "target"]]
    assert not any("attention" in answer for ask, answer in zip(asks, found, strict=True) if not ask.attention)
    with pytest.raises(UnsupportedError, match=r"'tone' \(pasta\) mixes no prompts"):
        engine.answer([Ask("tone", TEXTS[0], attention=True)])


def test_an_ask_that_fails_fails_alone(engine: Engine) -> None:
    asks = [
        Ask("tone", TEXTS[0]),
        Ask("nobody", TEXTS[0]),
        Ask("tone", ["two", "texts"]),
        Ask("tone", TEXTS[1], coverage=0.9),
    ]
    good, unknown, odd, unkept = engine.submit(asks)
    assert good.result(30)["label"].startswith("class")
    with pytest.raises(UnknownTaskError, match="no task 'nobody'"):
        unknown.result(30)
    with pytest.raises(DataError, match="wants one text"):
        odd.result(30)
    with pytest.raises(ConfigError, match="coverage"):
        unkept.result(30)


def test_a_task_that_cannot_be_read_fails_alone(tiny_bert: Path, folders: dict[str, Path], tmp_path: Path) -> None:
    with Engine.load(str(tiny_bert), warm_bytes=1) as engine:
        engine.bank.add("tone", folders["tone"])
        engine.bank.add("gone", shutil.copytree(folders["tone"], tmp_path / "gone"))
        engine.bank.add("topic", folders["topic"])
        shutil.rmtree(tmp_path / "gone")
        futures = engine.submit([Ask(name, TEXTS[0]) for name in ("tone", "gone", "topic")])
        assert futures[0].result(30)["label"]
        assert futures[2].result(30)["label"]
        with pytest.raises(StoreError, match="cannot be read"):
            futures[1].result(30)


def test_a_card_that_cannot_be_meant_fails_alone(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    entry = engine.bank.entry("tone")
    entry.card = replace(entry.card, task=Cloze(("a", "b", "c"), template="{text_pair} {mask}"))
    first, odd, last = engine.submit([Ask(name, TEXTS[0]) for name in ("topic", "tone", "names")])
    assert first.result(30)["label"]
    assert last.result(30)["tags"]
    with pytest.raises(KeyError, match="text_pair"):
        odd.result(30)
    assert "an ask of task 'tone' could not be read" in caplog.text


def test_a_version_that_was_asked_answers(engine: Engine, folders: dict[str, Path], tiny_bert: Path) -> None:
    old = engine.bank.hold("tone")
    engine.bank.add("tone", folders["topic"])
    first, second = engine.answer([Ask(old, TEXTS[1]), Ask("tone", TEXTS[1])])
    assert near([first], alone(folders["tone"], TEXTS[1:2], tiny_bert))
    assert near([second], alone(folders["topic"], TEXTS[1:2], tiny_bert))


def test_back_pressure_and_withdrawal(tiny_bert: Path, folders: dict[str, Path]) -> None:
    bank = Engine.load(str(tiny_bert))
    bank.bank.add("tone", folders["tone"])
    with Engine(bank.bank, bank.tokenizer, Batcher(queue=3, rows=3, wait=60)) as slow:
        (held,) = slow.submit([Ask("tone", "sun")])
        with pytest.raises(OverloadedError, match="at most 3"):
            slow.submit([Ask("tone", "sun")] * 3)
        assert held.cancel()
        assert len(slow.answer([Ask("tone", "sun")] * 2)) == 2
    with pytest.raises(OverloadedError, match="shutting down"):
        slow.submit([Ask("tone", "sun")])
    bank.close()


def test_closing_answers_what_was_accepted(tiny_bert: Path, folders: dict[str, Path]) -> None:
    engine = Engine.load(str(tiny_bert))
    engine.bank.add("tone", folders["tone"])
    futures = engine.submit([Ask("tone", text) for text in TEXTS * 40])
    engine.close()
    assert all(future.done() for future in futures)
    assert {future.result()["label"] for future in futures}


def test_batches_are_observed(tiny_bert: Path, folders: dict[str, Path]) -> None:
    seen: list[Ran] = []
    loaded = Engine.load(str(tiny_bert))
    loaded.bank.add("tone", folders["tone"])
    loaded.bank.add("topic", folders["topic"])
    with Engine(loaded.bank, loaded.tokenizer, Batcher(wait=0.05), seen.append) as engine:
        engine.answer([Ask(name, "good film") for name in ("tone", "topic", "tone")])
    assert [(ran.rows, ran.tasks, ran.tokens, ran.padded) for ran in seen] == [(3, 2, 12, 12)]
    loaded.close()


def test_tasks_come_and_go_under_load(engine: Engine, folders: dict[str, Path]) -> None:
    wanted = engine.answer([Ask("topic", text) for text in TEXTS])
    stop = threading.Event()

    def churn() -> None:
        while not stop.is_set():
            engine.bank.add("passing", folders["tone"])
            engine.bank.add("passing", folders["names"])
            engine.bank.remove("passing")

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(10):
            assert near(engine.answer([Ask("topic", text) for text in TEXTS]), wanted)
    finally:
        stop.set()
        thread.join()


LONG: dict[str, tuple[Any, str]] = {
    "windows": (["sun " * 22, "rain " * 5000], "are 4994 sequences and the queue holds 4096"),
    "choices": (["sun", ["rain"] * 5000], "are 5000 sequences and the queue holds 4096"),
    "text": (["sun " * 500_000, ["rain"] * 8], "has 16000032 characters"),
}


@pytest.mark.parametrize("case", LONG)
def test_what_becomes_too_much_is_refused_while_it_is_small(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    asked, reason = LONG[case]
    task = QuestionAnswering(stride=6) if case == "windows" else MultipleChoice()
    with Engine.load(str(tiny_bert)) as engine:
        engine.bank.add("x", adapter(load_backbone(str(tiny_bert)), tmp_path / "x", task=task))
        assert engine.answer([Ask("x", ["who ?", "good film" if case == "windows" else ["good", "bad"]])])
        monkeypatch.setattr(type(task), "encode", lambda *_: pytest.fail("it was tokenised"))
        with pytest.raises(UnsupportedError, match=reason):
            engine.submit([Ask("x", asked)])


def test_one_text_for_many_tasks_is_counted_for_each(engine: Engine) -> None:
    with pytest.raises(UnsupportedError, match="has 9000000 characters"):
        engine.submit([Ask("tone", "a" * 3_000_000), Ask("topic", "b" * 3_000_000), Ask("names", ["c" * 30] * 100_000)])


def test_a_text_without_a_token_fails_alone(tmp_path: Path) -> None:
    model = WRITERS["gpt2"]().transformer
    bare = tokenizer_of("gpt2")
    bare.backend_tokenizer.post_processor = TemplateProcessing("$A")
    bank = Bank(model)
    bank.add("x", adapter(model, tmp_path / "x", "kernel_mix", pooling="last"))
    with Engine(bank, bare) as engine:
        empty, good = engine.submit([Ask("x", ""), Ask("x", "anna went")])
        assert good.result(30)["label"]
        with pytest.raises(DataError, match="wanted a text of at least one token"):
            empty.result(30)


def test_an_answer_of_many_windows_keeps_no_batch_waiting(engine: Engine, tiny_bert: Path, tmp_path: Path) -> None:
    engine.bank.add("x", adapter(load_backbone(str(tiny_bert)), tmp_path / "x", task=QuestionAnswering(stride=6)))
    begun, go_on, ended = threading.Event(), threading.Event(), list[bool]()

    def take_long(_: object) -> None:
        begun.set()
        ended.append(go_on.wait(20))

    with engine.bank._running:
        (long,) = engine.submit([Ask("x", ["who ?", "sun " * 200])])
        long.add_done_callback(take_long)  # In the thread that decodes it.
    assert begun.wait(20)
    assert engine.answer([Ask("tone", "sun")])[0]["label"]
    assert not ended
    go_on.set()
    assert long.result(30)["answer"]
