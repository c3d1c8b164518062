"""Calibration fitted anew: on the rows of training it is training's, and an edited adapter gets one again."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from test_cli import run, write_rows
from test_sources import library, mixing  # noqa: F401  # pyright: ignore[reportUnusedImport]
from test_train import FOLDER, KINDS, QUICK, rows_of
from writers import pairs, save_writer

import attentune
from attentune import store
from attentune.errors import DataError, UnsupportedError
from attentune.training.recalibrate import recalibrate
from attentune.training.seeds import train_seeds
from attentune.training.sources.edit import with_sources
from attentune.training.train import train

OUT: list[dict[str, Any]] = [
    {"text": f"a long river in {word}", "label": "none"} for word in ("Paris", "London", "rain")
]


@pytest.mark.parametrize("kind", KINDS)
def test_on_the_rows_of_training_it_is_that_of_training(tiny_bert: Path, tmp_path: Path, kind: str) -> None:
    data = {"train": rows_of(kind), "validation": rows_of(kind, 12), "test": rows_of(kind, 7, seed=1)}
    made = train(data, "pasta", tmp_path / "a", str(tiny_bert), **QUICK)
    found = recalibrate(made.folder, data, tmp_path / "b")
    assert found.card.task == made.card.task
    mine, theirs = (card.calibration.to_card() for card in (found.card, made.card))
    assert mine["rows"] == theirs["rows"] == 12
    assert mine["temperature"] == pytest.approx(theirs["temperature"], rel=1e-3)
    assert mine["quantiles"] == pytest.approx(theirs["quantiles"], rel=1e-3, abs=1e-5)
    assert {file.name for file in found.folder.iterdir()} == FOLDER
    for name in (store.WEIGHTS, store.CONFIG, store.RECIPE, store.LOG):
        assert (found.folder / name).read_bytes() == (made.folder / name).read_bytes()
    saved = json.loads((found.folder / store.METRICS).read_text())
    assert saved["validation"] == pytest.approx(made.metrics["validation"], rel=1e-4, abs=1e-5)
    # Of what other rows and another calibration had given nothing is left.
    assert not {"test", "baseline"} & set(saved)
    assert list(saved["calibration"]) == ["validation"]


@pytest.mark.parametrize("asked", [{"out_of_scope": "none"}, {"false_alarms": 0.2}])
def test_texts_that_are_turned_away(tiny_bert: Path, tmp_path: Path, asked: dict[str, Any]) -> None:
    """By the out-of-scope class, or the share of false alarms, that the recipe names."""
    extra = OUT if "out_of_scope" in asked else []
    data = {"train": [*rows_of("classification"), *extra], "validation": [*rows_of("classification", 12, 3), *extra]}
    made = train(
        {**data, "train": rows_of("classification")}, "pasta", tmp_path / "a", str(tiny_bert), **QUICK, **asked
    )
    scope = recalibrate(made.folder, data["validation"], tmp_path / "b").card.calibration.scope
    before = made.card.calibration.scope
    assert scope is not None
    assert before is not None
    assert (scope.score, scope.label) == (before.score, before.label)
    assert scope.threshold == pytest.approx(before.threshold, rel=1e-3)
    if extra:
        with pytest.raises(DataError, match="no row is of the out-of-scope class 'none', so none can choose the"):
            recalibrate(made.folder, rows_of("classification", 12), tmp_path / "c")
        with pytest.raises(DataError, match="every row is of the out-of-scope class 'none'; others are needed"):
            recalibrate(made.folder, OUT, tmp_path / "c")
        with pytest.raises(DataError, match="row 4 has label 'odd', which training does not know: neg, pos"):
            recalibrate(made.folder, [*OUT, {"text": "a", "label": "odd"}], tmp_path / "c")


def test_an_edited_adapter_is_calibrated_again(mixing: Path, tmp_path: Path) -> None:  # noqa: F811
    rows = rows_of("classification", 40, seed=5)
    lean = with_sources(mixing, tmp_path / "lean", remove=["nli"])
    assert lean.card.calibration.rows == 0
    before = attentune.load(lean.folder).judge(rows)
    recalibrate(lean.folder, rows, lean.folder)
    adapter = attentune.load(lean.folder)
    assert adapter.card.calibration.rows == 40
    assert adapter.predict(["the film is good"], coverage=0.9)[0]["prediction_set"]
    after = adapter.judge(rows)
    assert after.trust["nll"] < before.trust["nll"] == after.trust["nll_before"]
    assert after.scores == before.scores
    assert (lean.folder / store.README).read_text().count("temperature") > 0
    tensors = (load_file(folder / store.WEIGHTS) for folder in (lean.folder, mixing))
    assert next(tensors).keys() == next(tensors).keys()
    assert set(adapter.metrics["run"]) >= {"sources_removed", "validation_rows", "calibration_rows"}
    last = with_sources(lean.folder, tmp_path / "last", remove=["stars"])
    assert (last.card.calibration.rows, "calibration_rows" in last.metrics["run"]) == (0, False)


def test_no_figures_of_the_old_rows_are_left(tiny_bert: Path, mixing: Path, tmp_path: Path) -> None:  # noqa: F811
    rows = rows_of("classification", 12)
    options: dict[str, Any] = {**QUICK, "epochs": 1, "seeds": 2}
    made = train_seeds(rows, "pasta", tmp_path / "seeds", str(tiny_bert), **options)
    assert "mean over 2 seeds" in (made.folder / store.README).read_text()
    found = recalibrate(made.folder, rows, tmp_path / "a")
    assert "seeds" not in found.metrics
    assert "mean over" not in (found.folder / store.README).read_text()
    assert "attention" in store.read(mixing).metrics
    assert "attention" not in recalibrate(mixing, rows, tmp_path / "b").metrics


def test_its_card_speaks_of_the_new_folder_and_of_the_new_rows(tiny_bert: Path, tmp_path: Path) -> None:
    data = {"train": rows_of("classification", 24), "validation": rows_of("classification", 12)}
    made = train({**data, "test": data["validation"][:7]}, "pasta", tmp_path / "first", str(tiny_bert), **QUICK)
    again = recalibrate(made.folder, rows_of("classification", 30, 1), tmp_path / "new")
    text = (again.folder / store.README).read_text()
    assert again.card.name == "new"
    assert (text.count('attentune.load("new")'), "first" in text) == (1, False)
    assert "| rows | 24 for training, 12 for validation, 7 for test, 30 for a later calibration |" in text
    assert "validation (30 rows)" in text
    assert "The calibration was fitted on the rows of these scores" in text
    assert "best moment of the training" not in text


def test_rows_that_cannot_calibrate(mixing: Path, tmp_path: Path) -> None:  # noqa: F811
    rows = rows_of("classification", 8)
    with pytest.raises(DataError, match="no validation split; the splits are train, test: name the one to read"):
        recalibrate(mixing, {"train": rows, "test": rows}, tmp_path / "a")
    with pytest.raises(DataError, match="row 1 has label 'odd', which training does not know: neg, pos"):
        recalibrate(mixing, [{"text": "a", "label": "odd"}], tmp_path / "a")
    with pytest.raises(DataError, match=r"have question \+ answer -> label, and the task was trained on text -> label"):
        recalibrate(mixing, [{"question": "who ?", "answer": "Anna", "label": "pos"}], tmp_path / "a")
    assert list(tmp_path.iterdir()) == []
    writer = save_writer("gpt2", tmp_path / "gpt2")
    options: dict[str, Any] = {"task": "generation", "epochs": 1, "max_new_tokens": 2}
    made = train(pairs(8), "kernel_mix", tmp_path / "writes", str(writer), biases=False, **options)
    with pytest.raises(UnsupportedError, match="generation states no probabilities, so that there is nothing to"):
        recalibrate(made.folder, pairs(8), tmp_path / "c")


def test_command(mixing: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    data = write_rows(tmp_path / "rows.jsonl", rows_of("classification", 30))
    assert run("calibrate", mixing, data, "--output", tmp_path / "a", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["output"] == str(tmp_path / "a")
    assert printed["calibration"] == attentune.load(tmp_path / "a").card.calibration.to_card()
    (tmp_path / "set").mkdir()
    for name, count in (("train", 20), ("test", 9)):
        write_rows(tmp_path / "set" / f"{name}.jsonl", rows_of("classification", count))
    assert run("calibrate", tmp_path / "a", tmp_path / "set", "-o", tmp_path / "a", "--split", "test") == 0
    shown = capsys.readouterr()
    assert "temperature" in shown.err
    assert "holds an adapter already" not in shown.err
    assert "ece_before" in shown.out
    assert attentune.load(tmp_path / "a").card.calibration.rows == 9
    assert run("calibrate", mixing, data, "-o", tmp_path / "a") == 0
    assert "a holds an adapter already; the new one takes its place" in capsys.readouterr().err
