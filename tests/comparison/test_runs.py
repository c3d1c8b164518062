"""Contenders on a tiny backbone: what each trains, and what a run records."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler
from transformers import BertModel

from attentune.backbones import fingerprint, load_backbone, load_tokenizer
from attentune.cli import main
from attentune.comparison.compare import compare
from attentune.comparison.contenders import build, contender, grid, names, options_of, peft_config, recipe_for
from attentune.comparison.measure import middle
from attentune.comparison.probe import Batch, regress
from attentune.comparison.records import read
from attentune.comparison.run import execute
from attentune.comparison.sets import load_set
from attentune.comparison.summary import Summary, summarise
from attentune.confidence import Labelled, calibrate, judge
from attentune.errors import ConfigError, UnsupportedError
from attentune.evaluation.statistics import score
from attentune.methods import METHODS
from attentune.tasks import Classification, Features, Regression, Tagging, Task, task_of
from attentune.tasks.task import IGNORED, Logits
from attentune.training.loop import TaskTrainer, logits_of

from .kit import a_run, quick


@pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning")  # peft's prefix tuning calls it so.
@pytest.mark.parametrize("name", names())
def test_every_contender_runs(sets: Path, tiny_bert: Path, name: str) -> None:
    record = execute(a_run(sets / "tone", name, quick(tiny_bert)))
    assert record["run_info"]["error_msg"] == ""
    ours, info = record["attentune"], record["train_info"]
    assert ours["sizes"] == {"train": 24, "validation": 12, "test": 200}
    assert 0 <= ours["validation"] <= 1
    assert score("mean", np.array(ours["rows"]["values"])) == pytest.approx(ours["test"])
    assert info["file_size"] > 4 * info["num_trainable_params"] * (name not in ("attempt", "prompt_tuning"))
    assert info["num_trainable_params"] < info["num_total_params"] or name == "full"
    assert info["file_size"] < 60_000 or name == "full"
    assert ours["memory_max"] > 2**20
    assert all(ms[what] > 0 for ms in ours["latency_ms"].values() for what in ("tuned", "bare", "ratio"))


@pytest.mark.parametrize("kind", ["grade", "pair", "many", "tags", "choices", "asked"])
@pytest.mark.parametrize("name", ["pasta", "probe", "lora"])
def test_every_kind_of_task(sets: Path, tiny_bert: Path, roomy_bert: Path, kind: str, name: str) -> None:
    """What is kept of the rows makes the task's own score again."""
    conditions = quick(roomy_bert, epochs=3, max_length=100) if kind == "asked" else quick(tiny_bert, epochs=3)
    record = execute(a_run(sets / kind, name, conditions, fold=1))
    assert record["run_info"]["error_msg"] == ""
    ours = record["attentune"]
    assert ours["metric"] in ours["test_scores"]
    found = score(ours["rows"]["form"], np.array(ours["rows"]["values"]))
    assert found == pytest.approx(ours["test_scores"][ours["metric"]], abs=1e-5)
    assert len(ours["rows"]["values"]) == ours["sizes"]["test"] == 6
    assert (ours["calibration"] is None) == (kind == "grade")


@pytest.mark.parametrize("kind", ["asked", "pair"])
def test_calibration_is_judged_as_that_of_an_adapter(
    sets: Path, roomy_bert: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Task, Labelled]] = []
    run = a_run(sets / kind, "probe", quick(roomy_bert, max_length=100))
    data = load_set(run.source).fold(0, 24, 1000)

    def watched(trainer: TaskTrainer, task: Task, features: Sequence[Features]) -> list[Logits]:
        logits = logits_of(trainer, task, features)
        seen.append((task, Labelled(logits, features, (data.validation, data.test)[len(seen)])))
        return logits

    monkeypatch.setattr("attentune.comparison.run.logits_of", watched)
    found = execute(run)["attentune"]["calibration"]
    (task, known), (_, asked) = seen
    task = task.fitted(known.logits, known.features, known.rows)
    fitted = calibrate(task, known)
    trust = judge(task, fitted, asked).trust
    assert found["temperature"] == pytest.approx(fitted.temperature)
    assert (found["ece"], found["ece_after"]) == pytest.approx((trust["ece_before"], trust["ece"]))


# The columns that the tools around peft's method_comparison read.
PEFT_COLUMNS = {
    "run_info": (
        "created_at", "total_time", "experiment_name", "peft_branch", "train_config", "peft_config", "error_msg",
    ),
    "train_info": (
        "accelerator_memory_reserved_avg", "accelerator_memory_max", "accelerator_memory_reserved_99th", "train_time",
        "file_size", "num_trainable_params", "num_total_params", "status", "metrics",
    ),
    "meta_info": ("model_info", "dataset_info", "package_info", "system_info", "pytorch_info"),
}  # fmt: skip


def test_records_have_the_columns_of_peft(sets: Path, tiny_bert: Path) -> None:
    record = json.loads(json.dumps(execute(a_run(sets / "tone", "ia3", quick(tiny_bert, epochs=2)))))
    for part, columns in PEFT_COLUMNS.items():
        assert set(columns) <= set(record[part])
    assert record["train_info"]["status"] == "success"
    assert record["run_info"]["train_config"]["model_id"] == str(tiny_bert)
    assert record["run_info"]["peft_config"]["peft_type"] == "IA3"
    assert record["run_info"]["peft_config"]["base_model_name_or_path"] == str(tiny_bert)
    first, second, last = record["train_info"]["metrics"]
    assert (first["step"], second["step"]) == (3, 6)
    assert {"test accuracy", "train loss", "train samples", "train total tokens"} <= set(last)
    packages = record["meta_info"]["package_info"]
    assert {f"{name}-version" for name in ("peft", "transformers", "datasets", "torch", "bitsandbytes")} <= set(
        packages
    )


def test_a_failure_is_a_record(sets: Path, tiny_bert: Path, tmp_path: Path) -> None:
    run = a_run(sets / "tone", "pasta", quick(tiny_bert, max_length=2))
    record = execute(run)
    assert record["train_info"]["status"] == "failed"
    assert "max_length leaves 2 tokens" in record["run_info"]["error_msg"]
    lines: list[str] = []
    compare([str(sets / "tone")], ["pasta"], tmp_path, run.conditions, rates=2, report=lines.append)
    assert len(lines) == 2
    assert "failed, max_length leaves 2" in lines[0]
    found = summarise(tmp_path)
    assert [name for name, _ in found.failures] == ["tone-pasta-0.01-seed0", "tone-pasta-0.03-seed0"]
    assert (found.tasks, found.done, found.left) == ((), 0, 0)


def test_what_failed_is_tried_again_at_the_next_start(
    sets: Path, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ([str(sets / "tone")], ["pasta"], tmp_path, quick(tiny_bert))
    with monkeypatch.context() as broken:
        broken.setattr("attentune.comparison.run.load_backbone", Mock(side_effect=MemoryError("no room")))
        assert len(compare(*given, rates=1, seeds=1).failed) == 1
    (kept,) = (tmp_path / "runs").iterdir()
    assert "no room" in kept.read_text()
    with pytest.raises(SystemExit) as end:
        main(["compare", "--report", "--output", str(tmp_path)])
    assert end.value.code == 0
    told = capsys.readouterr().err
    assert "tone-pasta-0.01-seed0: failed, no room" in told
    assert "0 runs, 0 left, 1 failed; what failed is tried again at the next start" in told
    page = (tmp_path / "report.md").read_text()
    assert "0 runs done, 1 failed" in page
    assert "| tone-pasta-0.01-seed0 | no room |" in page
    # No time: nothing is tried, and what had failed is still told of.
    with pytest.raises(ConfigError, match="minutes are 0 at least, found nan"):
        compare(*given, minutes=float("nan"))
    compare(*given, rates=1, seeds=1, minutes=0)
    assert len(summarise(tmp_path).failures) == 1
    assert compare(*given, rates=1, seeds=1).failed == []
    found = summarise(tmp_path)
    assert (found.failures, found.done, found.left) == ((), 1, 0)
    assert list((tmp_path / "runs").iterdir()) == [kept]


def test_other_weights_of_a_backbone_are_noticed(sets: Path, tiny_bert: Path, tmp_path: Path) -> None:
    bert = shutil.copytree(tiny_bert, tmp_path / "bert")
    lines: list[str] = []

    def again(**changes: Any) -> Summary:
        compare([str(sets / "tone")], ["probe", "pasta"], tmp_path / "out", quick(bert), rates=1, seeds=1,
                report=lines.append, **changes)  # fmt: skip
        return summarise(tmp_path / "out")

    assert (again().done, len(lines)) == (2, 2)
    first = fingerprint(load_backbone(str(bert)))
    assert {r["attentune"]["weights"] for r in read(tmp_path / "out" / "runs").values()} == {first}
    again()
    assert len(lines) == 2
    model = BertModel.from_pretrained(bert)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    model.save_pretrained(bert)
    # No time: the results of other weights stay where they are, and count no longer.
    found = again(minutes=0)
    assert (found.done, found.left, found.tasks) == (0, 2, ())
    assert len(read(tmp_path / "out" / "runs")) == 2
    assert (again().done, len(lines)) == (2, 5)  # with a line that says that the time was over
    assert {r["attentune"]["weights"] for r in read(tmp_path / "out" / "runs").values()} == {
        fingerprint(load_backbone(str(bert)))
    }
    # What older versions have written says nothing about weights, and stands.
    for path in (tmp_path / "out" / "runs").iterdir():
        record = json.loads(path.read_bytes())
        del record["attentune"]["weights"]
        path.write_text(json.dumps(record))
    BertModel(model.config).save_pretrained(bert)
    assert (again().done, len(lines)) == (2, 5)


def test_a_backbone_that_is_gone_leaves_what_is_finished(sets: Path, tiny_bert: Path, tmp_path: Path) -> None:
    bert = shutil.copytree(tiny_bert, tmp_path / "bert")
    compare([str(sets / "tone")], ["probe"], tmp_path / "out", quick(bert))
    shutil.rmtree(bert)
    compare([str(sets / "mood")], ["probe"], tmp_path / "out", quick(tiny_bert), add=True)
    assert summarise(tmp_path / "out").done == 2


def test_failed_runs_are_told_by_the_exit_code(sets: Path, tiny_bert: Path, tmp_path: Path) -> None:
    given = ["compare", str(sets / "tone"), "--methods", "pasta", "--rates", "1", "--backbone", str(tiny_bert)]
    for shown in ([], ["--json"]):
        with pytest.raises(SystemExit) as end:
            main([*given, "--max-length", "2", "--output", str(tmp_path / f"out{len(shown)}"), *shown])
        assert end.value.code == 1
        assert (tmp_path / f"out{len(shown)}" / "report.md").is_file()


def test_half_precision_carries_frozen_weights(sets: Path, tiny_bert: Path) -> None:
    for name in ("kernel_mix", "lora", "prompt_tuning", "bitfit"):
        record = execute(a_run(sets / "tone", name, quick(tiny_bert, frozen="bfloat16")))
        assert record["run_info"]["error_msg"] == ""


@pytest.mark.parametrize("name", ["pasta", "full"])
def test_attention_dropout_is_that_of_the_conditions(sets: Path, tiny_bert: Path, name: str) -> None:
    own, none = (
        execute(a_run(sets / "tone", name, quick(tiny_bert, attention_dropout=dropout)))["train_info"]["metrics"]
        for dropout in (None, 0.0)
    )
    assert [x["train loss"] for x in own] != [x["train loss"] for x in none]


def test_only_what_a_contender_trains_changes(tiny_bert: Path, sets: Path) -> None:
    data = load_set(str(sets / "tone")).data
    task, conditions = task_of(data), quick(tiny_bert)
    base = load_backbone(str(tiny_bert))
    tokenizer = load_tokenizer(str(tiny_bert), base)
    tuned = build("bitfit", base, tokenizer, task, recipe_for("bitfit", "classification", False, conditions))
    trained = {name for name, p in tuned.model.named_parameters() if p.requires_grad}
    assert all(name.endswith(".bias") or name == "heads.weight" for name in trained)
    assert set(tuned.kept()) == {name.removeprefix("body.") for name in trained}
    tuned = build("lora", load_backbone(str(tiny_bert)), tokenizer, task, recipe_for("lora", "pair", False, conditions))
    targets = {name.split(".lora_")[0].rsplit(".", 1)[1] for name in tuned.kept() if "lora_" in name}
    assert targets == {"query", "value"}
    assert not any("token_type" in name for name in tuned.kept())


def test_the_probe_is_logistic_regression() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(60, 5).double() * torch.tensor([1.0, 5.0, 0.1, 1.0, 1.0]) + 3, torch.arange(60) % 3
    x[:, 0] += y
    z = StandardScaler().fit_transform(x.numpy())
    for strength in (0.01, 1.0):
        weight, bias = regress(
            Classification(("a", "b", "c")), [Batch(x[:32], y[:32]), Batch(x[32:], y[32:])], 3, strength
        )
        expected = LogisticRegression(C=strength, tol=1e-8, max_iter=5000).fit(z, y.numpy())
        wanted = expected.decision_function(z)
        found = (x @ weight.T + bias).numpy()
        # softmax does not see what all classes have in common
        assert found - found.mean(1, keepdims=True) == pytest.approx(wanted - wanted.mean(1, keepdims=True), abs=2e-3)
    targets = x[:, 1] / 5 + torch.randn(60)
    task = Regression.of(targets.tolist())
    scaled = ((targets - task.mean) / task.std).float()
    weight, bias = regress(task, [Batch(x, scaled)], 1, 0.01)
    ridge = Ridge(alpha=1 / (2 * 0.01)).fit(z, scaled.numpy())
    assert (x @ weight.T + bias)[:, 0].numpy() == pytest.approx(ridge.predict(z), abs=2e-3)


def test_the_probe_does_not_see_padding() -> None:
    torch.manual_seed(0)
    states, lengths = torch.randn(6, 5, 4).double(), [5, 3, 2, 4, 1, 3]
    mask = torch.tensor([[int(t < length) for t in range(5)] for length in lengths])
    targets = torch.where(mask.bool(), torch.randint(3, (6, 5)), IGNORED)
    task = Tagging(("O", "B-A", "B-B"))
    found = [
        regress(task, [Batch(torch.where(mask[..., None].bool(), states, filled), targets, mask)], 3, 1.0)
        for filled in (0.0, 100.0)
    ]
    for zero, hundred in zip(*found, strict=True):
        torch.testing.assert_close(zero, hundred, atol=1e-6, rtol=1e-6)


def test_grids_and_names(tiny_bert: Path) -> None:
    assert grid(0.01, 1) == (0.01,)
    assert grid(0.01, 2) == (0.01, 0.03)
    assert grid(0.002, 5) == (0.002, 0.006, 0.00067, 0.018, 0.00022)
    assert set(names()) == {*METHODS, "lora", "ia3", "prompt_tuning", "prefix_tuning", "bitfit", "probe", "full"}
    recipe = recipe_for("pasta", "classification", False, quick(tiny_bert))
    assert contender("pasta").rates(recipe, 2) == (0.01, 0.03)
    assert contender("probe").rates(recipe, 2) == (None,)
    assert recipe.training.patience == 0
    assert options_of("lora", recipe)["own"] == {"r": 8, "lora_alpha": 16, "lora_dropout": 0.1}
    assert middle([5, 1, 9, 3], 2) == [3, 0]
    assert middle([5, 1], 3) == [1, 0, 1]


def test_what_a_backbone_cannot_have_is_refused() -> None:
    from transformers import T5Config, T5EncoderModel

    base = T5EncoderModel(T5Config(vocab_size=50, d_model=16, d_kv=4, d_ff=32, num_layers=1, num_heads=4))
    assert peft_config("lora", base.encoder).target_modules
    from attentune.comparison.contenders import _free_biases

    with pytest.raises(UnsupportedError, match="this backbone has none"):
        _free_biases(base)
