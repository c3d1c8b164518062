"""Where a run can be followed: the log that every adapter has; the trackers of the Trainer, for real and offline."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from test_train import QUICK, rows_of

from attentune.errors import ConfigError
from attentune.training import trackers
from attentune.training.recipe import read_recipe
from attentune.training.train import train


def run(backbone: Path, output: Path, *report_to: str, **options: Any) -> list[dict[str, Any]]:
    """The lines of the log of a short run."""
    data = {"train": rows_of("classification"), "validation": rows_of("classification", 8, seed=1)}
    result = train(data, "pasta", output, str(backbone), report_to=list(report_to), **{**QUICK, **options})
    assert read_recipe(result.folder / "recipe.toml").training.report_to == list(report_to)
    return [json.loads(line) for line in (result.folder / "log.jsonl").read_text().splitlines()]


def test_every_adapter_has_a_log(tiny_bert: Path, tmp_path: Path) -> None:
    lines = run(tiny_bert, tmp_path / "a")
    assert [line["step"] for line in lines] == [4, 8]
    assert [line["epoch"] for line in lines] == [1.0, 2.0]
    assert 0 < lines[0]["seconds"] < lines[1]["seconds"]
    assert all(0 < line["loss"] < 5 for line in lines)
    names = {"loss", "accuracy", "macro_f1", "matthews"}
    assert all(names <= set(line["validation"]) for line in lines)
    metrics = json.loads((tmp_path / "a" / "metrics.json").read_text())
    assert max(line["validation"]["accuracy"] for line in lines) == metrics["validation"]["accuracy"]
    assert {path.name for path in tmp_path.iterdir()} == {"a"}


def test_a_resumed_log_has_each_evaluation_once(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text(
        "".join(f'{{"step": {s}, "seconds": {s}.0}}\n' for s in (2, 4, 6)) + '{"step": 8, "sec'
    )
    log = trackers.RunLog(tmp_path)
    state: Any = type("State", (), {"is_world_process_zero": True, "global_step": 4, "epoch": 1.0})()
    log.on_train_begin(None, state, None)
    state.global_step = 6
    log.on_evaluate(None, state, None, metrics={"eval_loss": 0.5, "eval_runtime": 1.0, "epoch": 1.0})
    lines = [json.loads(line) for line in log.text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6]
    assert lines[2]["validation"] == {"loss": 0.5}
    assert lines[2]["seconds"] >= 4


def test_tensorboard(tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="no tensorboard")
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    lines = run(tiny_bert, tmp_path / "a", "tensorboard")
    (folder,) = (tmp_path / "a.tensorboard").iterdir()
    found = events.EventAccumulator(str(folder)).Reload()
    shown = [(event.step, event.value) for event in found.Scalars("eval/accuracy")]
    assert shown == [(line["step"], pytest.approx(line["validation"]["accuracy"])) for line in lines]
    assert {"train/loss", "eval/macro_f1", "train/learning_rate"} <= set(found.Tags()["scalars"])


def test_wandb_offline(tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")
    for name, value in {"MODE": "offline", "DIR": tmp_path, "SILENT": "true", "ERROR_REPORTING": "false"}.items():
        monkeypatch.setenv(f"WANDB_{name}", str(value))
    for name in ("a", "b"):  # two runs of one process stay two
        run(tiny_bert, tmp_path / name, "wandb")
        assert wandb.run is None
    files = list((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 2
    until = time.monotonic() + 60
    while not all(b"eval/accuracy" in file.read_bytes() for file in files):
        assert time.monotonic() < until, "W&B, whose own process writes the file, has not written the scores"
        time.sleep(0.05)


def test_mlflow_in_a_folder(tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "runs").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    lines = run(tiny_bert, tmp_path / "a", "mlflow")
    (found,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert found.info.run_name == "a"
    assert found.info.status == "FINISHED"
    assert found.data.metrics["eval_accuracy"] == pytest.approx(lines[-1]["validation"]["accuracy"])


def test_refusals(tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="no tracker 'abacus' to report to; there are tensorboard, wandb, mlflow"):
        run(tiny_bert, tmp_path / "a", "abacus")
    monkeypatch.setitem(trackers.TRACKERS, "not_installed", "a-package")
    with pytest.raises(ConfigError, match="reporting to not_installed needs its package: pip install a-package"):
        run(tiny_bert, tmp_path / "a", "not_installed")
    assert not os.listdir(tmp_path)
