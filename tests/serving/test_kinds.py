"""Tasks of every kind in one engine: each input's answer is that of its adapter alone."""

from pathlib import Path
from typing import Any

import pytest
from test_predict import near
from test_train import KINDS, QUICK, rows_of

import attentune
from attentune.serving import Ask, Engine
from attentune.training.train import train

METHODS = ("pasta", "kernel_mix", "tiny_attention", "attempt", "prefix_propagation", "pasta", "kernel_mix")


@pytest.mark.slow
def test_every_kind_of_task_in_one_engine(masked_bert: Path, tmp_path: Path) -> None:
    folders = {
        kind: train(rows_of(kind), method, tmp_path / kind, str(masked_bert), **QUICK).folder
        for kind, method in zip(KINDS, METHODS, strict=True)
    }
    words: dict[str, Any] = {**QUICK, "words": ["neg=bad", "pos=good"]}
    folders["words"] = train(rows_of("classification"), "pasta", tmp_path / "words", str(masked_bert), **words).folder
    given: dict[str, list[Any]] = {kind: [_input(row) for row in rows_of(kind, 5, seed=3)] for kind in KINDS}
    given["words"] = given["classification"]
    with Engine.load(str(masked_bert)) as engine:
        for name, folder in folders.items():
            engine.bank.add(name, folder)
        asks = [Ask(name, item) for i in range(5) for name, items in given.items() for item in items[i : i + 1]]
        found = engine.answer(asks)
    for name, folder in folders.items():
        mine = [answer for ask, answer in zip(asks, found, strict=True) if ask.task == name]
        assert near(mine, attentune.load(folder).predict(given[name], batch_size=1)), name


def _input(row: dict[str, Any]) -> Any:
    if "tokens" in row:
        return row["tokens"]
    if "text_pair" in row:
        return [row["text"], row["text_pair"]]
    return row["text"] if "text" in row else {k: v for k, v in row.items() if k not in ("label", "answers")}
