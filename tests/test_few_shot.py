"""Few rows: how they are drawn, and training over several seeds with a mean and an interval."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from scipy import stats
from test_cli import run, write_rows
from test_train import FOLDER, QUICK, rows_of

import attentune
from attentune.errors import ConfigError, DataError
from attentune.evaluation.seeds import over_seeds, summary
from attentune.tasks import load_data
from attentune.tasks.draw import draw, few
from attentune.training.checkpoints import Mark
from attentune.training.choice import choose
from attentune.training.ground import ground_of
from attentune.training.recipe import read_recipe
from attentune.training.seeds import train_seeds
from attentune.training.train import identity_of

MANY = {name: rows_of("classification", n, seed=n) for name, n in (("train", 60), ("validation", 40), ("test", 20))}


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=40), st.data())
@settings(max_examples=60, deadline=None)
def test_classes_are_drawn_evenly(labels: list[str], data: Any) -> None:
    rows = [{"text": str(i), "label": label} for i, label in enumerate(labels)]
    count = data.draw(st.integers(1, len(rows)))
    drawn = draw(rows, "classification", count, "seed")
    assert len(drawn) == count
    assert [int(row["text"]) for row in drawn] == sorted({int(row["text"]) for row in drawn})
    there, taken = Counter(labels), Counter(row["label"] for row in drawn)
    # A class has fewer than another one only where it has no more rows, or by the one that did not come out even.
    assert all(taken[a] >= taken[b] - 1 or taken[a] == there[a] for a in there for b in there)


@given(st.lists(st.sets(st.sampled_from("abcd")), max_size=20), st.integers(1, 60), st.data())
@settings(max_examples=100, deadline=None)
def test_labels_are_drawn_evenly(rare: list[set[str]], common: int, data: Any) -> None:
    """Of every label, and of rows without any, at least its share of the draws, or all that there are."""
    labels = [*rare, *[{"a"}] * common]
    rows = [{"text": str(i), "label": sorted(names)} for i, names in enumerate(labels)]
    count = data.draw(st.integers(1, len(rows)))
    drawn = draw(rows, "multilabel", count, "seed")
    assert len(drawn) == count
    assert [int(row["text"]) for row in drawn] == sorted({int(row["text"]) for row in drawn})
    there, taken = (Counter(name for row in some for name in row["label"] or ["none"]) for some in (rows, drawn))
    assert all(taken[name] >= min(there[name], count // len(there)) for name in there)


def test_one_label_a_row_is_drawn_as_a_class() -> None:
    labels = ["a"] * 30 + ["b"] * 6 + ["c"] * 2
    one = [{"text": str(i), "label": label} for i, label in enumerate(labels)]
    listed = [{**row, "label": [row["label"]]} for row in one]
    for count in (3, 7, 20):
        texts = [
            [row["text"] for row in draw(*given, count, "seed")]
            for given in ((one, "classification"), (listed, "multilabel"))
        ]
        assert texts[0] == texts[1]


def test_a_seed_decides_what_is_drawn() -> None:
    data = load_data(MANY)
    a, again, b = few(data, 8, 1), few(data, 8, 1), few(data, 8, 2)
    assert a.train == again.train != b.train
    assert a.validation == again.validation != b.validation
    assert Counter(row["label"] for row in a.train) == {"neg": 4, "pos": 4}
    assert (len(a.train), len(a.validation), len(a.test)) == (8, 8, 20)
    assert a.notes[-1] == "shots: 8 training and 8 validation rows drawn (seed 1)"
    assert len(few(data, 50, 0).validation) == 40


@pytest.mark.parametrize("kind", ["multilabel", "regression", "tagging"])
def test_other_kinds_are_drawn_too(kind: str) -> None:
    assert len(few(load_data(rows_of(kind, 40)), 6, 0).train) == 6


def test_wrong_shots() -> None:
    data = load_data(MANY)
    with pytest.raises(DataError, match="shots=61 of 60 training rows; wanted 1 to 60"):
        few(data, 61, 0)
    with pytest.raises(DataError, match="shots=1 for 2 classes; at least one row a class is needed"):
        few(data, 1, 0)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=9))
@settings(max_examples=30, deadline=None)
def test_the_interval_is_students(values: list[float]) -> None:
    found = over_seeds(values)
    mean, error = np.mean(values), np.sqrt(sum((v - np.mean(values)) ** 2 for v in values) / (len(values) - 1))
    wide = stats.t(len(values) - 1).ppf(0.975) * error / len(values) ** 0.5
    assert [found["mean"], found["low"], found["high"]] == pytest.approx([mean, mean - wide, mean + wide], abs=1e-12)


def test_one_seed_has_no_interval() -> None:
    assert over_seeds([0.5]) == {"mean": 0.5}
    assert summary([{"test": {"a": 1.0, "b": 0.0}}, {"test": {"a": 0.0}}])["test"].keys() == {"a"}


def test_several_seeds(tiny_bert: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {**QUICK, "shots": 8, "seed": 3, "learning_rate": 0.05, "task": "classification"}
    lines: list[str] = []
    result = train_seeds(MANY, "pasta", tmp_path / "a", str(tiny_bert), seeds=3, report=lines.append, **options)
    assert [line for line in lines if line.startswith("seed")] == ["seed 3", "seed 4", "seed 5"]
    assert {path.name for path in tmp_path.iterdir()} == {"a"}
    assert {path.name for path in (tmp_path / "a").iterdir()} == FOLDER
    saved = json.loads((tmp_path / "a" / "metrics.json").read_text())
    assert saved == result.metrics
    seeds = saved["seeds"]
    assert list(seeds["runs"]) == ["3", "4", "5"]
    best = max(seeds["runs"].values(), key=lambda scores: scores["validation"]["accuracy"])
    assert seeds["runs"][str(seeds["kept"])]["validation"]["accuracy"] == best["validation"]["accuracy"]
    tests = [scores["test"]["accuracy"] for scores in seeds["runs"].values()]
    assert seeds["mean"]["test"]["accuracy"] == over_seeds(tests)
    assert seeds["mean"]["test"]["accuracy"]["low"] <= np.mean(tests) <= seeds["mean"]["test"]["accuracy"]["high"]
    assert saved["run"]["training_rows"] == 8
    recipe = read_recipe(tmp_path / "a" / "recipe.toml")
    assert (recipe.task.shots, recipe.training.seed, recipe.task.template) == (8, seeds["kept"], "auto")
    assert "mean over 3 seeds" in (tmp_path / "a" / "README.md").read_text()
    kept = attentune.load(tmp_path / "a")
    assert kept.card.name == "a"
    assert kept.judge(MANY, split="test").scores == pytest.approx(saved["test"])
    # The saved recipe gives the same adapter by itself.
    alone = attentune.train(MANY, None, tmp_path / "b", str(tiny_bert), tmp_path / "a" / "recipe.toml")
    assert alone.metrics["test"] == saved["test"]


def replace_weights(backbone: Path) -> None:
    """Other weights of the same shapes."""
    file = backbone / "model.safetensors"
    save_file({key: value + 1 for key, value in load_file(file).items()}, file, metadata={"format": "pt"})


def test_seeds_of_other_weights_are_not_gone_on_with(tiny_bert: Path, tmp_path: Path) -> None:
    """Of the same name, in the same folder; after a kill between two seeds."""
    where = shutil.copytree(tiny_bert, tmp_path / "bert")
    options: dict[str, Any] = {**QUICK, "epochs": 1, "shots": 8, "seeds": 2}
    lines: list[str] = []

    def killed(line: str) -> None:
        lines.append(line)
        if line == "seed 1":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_seeds(MANY, "pasta", tmp_path / "a", str(where), report=killed, **options)
    kept = shutil.copytree(tmp_path / "a.seeds", tmp_path / "kept")
    train_seeds(MANY, "pasta", tmp_path / "a", str(where), resume=True, **options)
    shutil.copytree(kept, tmp_path / "a.seeds")
    replace_weights(where)
    with pytest.raises(ConfigError, match="holds seeds with other settings, data or weights; start again without"):
        train_seeds(MANY, "pasta", tmp_path / "a", str(where), resume=True, **options)


def test_finished_seeds_are_not_trained_again(tiny_bert: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {**QUICK, "epochs": 1, "shots": 8}
    first = train_seeds(MANY, "pasta", tmp_path / "a", str(tiny_bert), seeds=1, **options)
    done = tmp_path / "b.seeds" / "0" / "b"
    shutil.copytree(first.folder, done)
    (done / "metrics.json").write_text(json.dumps({**first.metrics, "validation": {"accuracy": 2.0}}))
    rows, chosen = choose(MANY, "pasta", None, options)
    Mark(tmp_path / "b.seeds" / "run.id", identity_of(rows, chosen, ground_of(str(tiny_bert)))).write()
    again: dict[str, Any] = {"seeds": 2, "resume": True, **options}
    other: dict[str, Any] = {**again, "batch_size": 4}
    with pytest.raises(ConfigError, match="holds seeds with other settings, data or weights"):
        train_seeds(MANY, "pasta", tmp_path / "b", str(tiny_bert), **other)
    result = train_seeds(MANY, "pasta", tmp_path / "b", str(tiny_bert), **again)
    assert result.metrics["seeds"]["runs"]["0"]["validation"] == {"accuracy": 2.0}
    assert result.metrics["seeds"]["kept"] == 0
    with pytest.raises(ConfigError, match="at least one seed is needed, found seeds=0"):
        train_seeds(MANY, "pasta", tmp_path / "c", str(tiny_bert), seeds=0)


def test_events_of_every_run_are_kept(tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard", reason="no tensorboard")
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    options: dict[str, Any] = {**QUICK, "epochs": 1, "shots": 8, "report_to": ["tensorboard"], "seeds": 2}
    for count in range(1, 4):
        train_seeds(MANY, "pasta", tmp_path / "a", str(tiny_bert), **options)
        for seed in (0, 1):
            assert len([*(tmp_path / "a.tensorboard" / f"seed-{seed}").rglob("events.*")]) == count
    assert {path.name for path in tmp_path.iterdir()} == {"a", "a.tensorboard"}


def test_command(tiny_bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_rows(tmp_path / "rows.jsonl", MANY["train"])
    settings = ("--shots", 8, "--seeds", 2, "--set", "epochs=1", "--set", "max_length=24", "--backbone", tiny_bert)
    assert run("train", data, "-o", tmp_path / "a", *settings) == 0
    shown = capsys.readouterr()
    assert "mean over 2 seeds (95% interval)" in shown.out
    assert "linear head: " in shown.err
    assert run("train", data, "-o", tmp_path / "b", "--json", *settings) == 0
    assert list(json.loads(capsys.readouterr().out)["seeds"]["runs"]) == ["0", "1"]
    assert run("train", data, "-o", tmp_path / "c", "--shots", 99, "--backbone", tiny_bert) == 2
    assert "shots=99 of 54 training rows" in capsys.readouterr().err
