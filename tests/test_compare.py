"""`attentune compare` on a tiny backbone: the runs, what they record, and that none is done twice."""

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler
from test_train import rows_of

import attentune
from attentune.backbones import load_backbone, load_tokenizer
from attentune.cli import main
from attentune.comparison.compare import compare, plan, read_plan
from attentune.comparison.contenders import build, contender, grid, names, options_of, peft_config, recipe_for
from attentune.comparison.measure import middle
from attentune.comparison.pictures import amount, pareto
from attentune.comparison.plan import Conditions, Run, Schedule
from attentune.comparison.probe import Batch, regress
from attentune.comparison.report import estimate, markdown, shade, signed
from attentune.comparison.run import execute, read
from attentune.comparison.sets import load_set
from attentune.comparison.summary import summarise
from attentune.errors import ConfigError, StoreError, UnsupportedError
from attentune.evaluation.statistics import Estimate, score
from attentune.methods import METHODS
from attentune.tasks import Classification, Regression, task_of


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder a kind of task: `tone` has a test split that is large enough, the others go by cross-validation."""
    root = tmp_path_factory.mktemp("sets")
    sizes = {"tone": (40, 12, 200), "mood": (24, 12, 200)}
    kinds = {
        "tone": "classification", "mood": "classification", "grade": "regression", "pair": "pair", "many": "multilabel",
        "tags": "tagging", "choices": "multiple_choice",
    }  # fmt: skip
    for name, kind in kinds.items():
        (root / name).mkdir()
        for seed, (split, count) in enumerate(
            zip(("train", "validation", "test"), sizes.get(name, (30, 5, 5)), strict=True)
        ):
            lines = "\n".join(json.dumps(row) for row in rows_of(kind, count, seed))
            (root / name / f"{split}.jsonl").write_text(lines)
    return root


def quick(tiny_bert: Path, **changes: Any) -> Conditions:
    return replace(Conditions(str(tiny_bert), rows=24, epochs=1, batch_size=8, max_length=24), **changes)


def a_run(source: Path, name: str, conditions: Conditions, fold: int = 0) -> Run:
    (cell,) = plan([load_set(str(source))], [name], conditions, rates=1, seeds=1)
    return cell.trials()[fold]


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


@pytest.mark.parametrize("kind", ["grade", "pair", "many", "tags", "choices"])
@pytest.mark.parametrize("name", ["pasta", "probe", "lora"])
def test_every_kind_of_task(sets: Path, tiny_bert: Path, kind: str, name: str) -> None:
    """What is kept of the rows makes the task's own score again."""
    record = execute(a_run(sets / kind, name, quick(tiny_bert, epochs=3), fold=1))
    assert record["run_info"]["error_msg"] == ""
    ours = record["attentune"]
    assert ours["metric"] in ours["test_scores"]
    found = score(ours["rows"]["form"], np.array(ours["rows"]["values"]))
    assert found == pytest.approx(ours["test_scores"][ours["metric"]], abs=1e-5)
    assert len(ours["rows"]["values"]) == ours["sizes"]["test"] == 6


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
    compare([str(sets / "tone")], ["pasta"], tmp_path, run.conditions, rates=2, report=lines.append)
    assert len(lines) == 2
    found = summarise(tmp_path)
    assert [name for name, _ in found.failures] == ["tone-pasta-0.01-seed0", "tone-pasta-0.03-seed0"]
    assert found.tasks == ()


@pytest.fixture(scope="module")
def compared(sets: Path, tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks, two contenders, two rates, two seeds; the lines of progress in `lines.txt`."""
    folder, lines = tmp_path_factory.mktemp("compared"), list[str]()
    compare(*both(sets), folder, quick(tiny_bert), rates=2, report=lines.append)
    (folder / "lines.txt").write_text("\n".join(lines))
    return folder


def both(sets: Path) -> tuple[list[str], list[str]]:
    return [str(sets / "tone"), str(sets / "mood")], ["pasta", "probe"]


def test_rates_are_chosen_on_validation_and_runs_never_repeated(sets: Path, tiny_bert: Path, compared: Path) -> None:
    lines = (compared / "lines.txt").read_text().splitlines()
    # 2 rates and a second seed; the probe once
    assert len(lines) == len(set(lines)) == 2 * (3 + 1)
    records = read(compared / "runs")
    validation = {key: record["attentune"]["validation"] for key, record in records.items()}
    for cell in read_plan(compared):
        counted = cell.counted(validation)
        chosen = counted[0][0].rate
        means = {rate: np.mean([validation[run.hash] for run in cell.runs(rate, 0)]) for rate in cell.rates}
        assert means[chosen] == max(means.values())
        assert len(counted) == (1 if cell.first.contender == "probe" else 2)
    again: list[str] = []
    compare(*both(sets), compared, quick(tiny_bert), rates=2, report=again.append)
    assert again == []
    found = summarise(compared)
    assert (found.done, found.left) == (8, 0)
    assert [(task.name, task.metric, task.folds) for task in found.tasks] == [
        ("tone", "accuracy", 1),
        ("mood", "accuracy", 1),
    ]
    assert {name: count for name, (_, count) in found.ranks.items()} == {"pasta": 2, "probe": 2}
    for task in found.tasks:
        for line in task.lines:
            assert line.score.low <= line.score.value <= line.score.high
            assert (line.against is None) == (line.contender == task.reference)


def test_the_report_needs_nothing_else(compared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["compare", "--report", "--output", str(compared)])
    assert end.value.code == 0
    shown = capsys.readouterr()
    assert "linear probe" in shown.out
    assert "8 runs, 0 left" in shown.err
    page = (compared / "report.html").read_text()
    assert page.count("<svg") == 2 * 4
    assert not re.search(r'(src|href)="(?!#)|<script|<link|@import', page)
    for words in ("Rank over tasks", "tone: accuracy", "mood: accuracy", "PASTA", "linear probe", "Paired differences"):
        assert words in page
    for column in ("against linear probe", "95 %", "saved", "trained", "seconds", "memory", "32 texts", "ECE after"):
        assert f">{column}</th>" in page
    text = (compared / "report.md").read_text()
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert len(tables) == 1 + 1 + 2 * 2 + 1
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1, table
    assert "\n\n\n" not in text


def test_tasks_are_added_under_their_own_conditions(sets: Path, tiny_bert: Path, tmp_path: Path) -> None:
    compare([str(sets / "tone")], ["probe"], tmp_path, quick(tiny_bert))
    compare([str(sets / "mood")], ["probe"], tmp_path, replace(quick(tiny_bert), rows=12), add=True)
    found = summarise(tmp_path)
    assert {task.name: task.conditions.rows for task in found.tasks} == {"mood": 12, "tone": 24}
    text = markdown(found)
    assert "Conditions: rows 12.\n\n|" in text
    assert "Conditions: rows 24.\n\n|" in text
    # a task that is named again is compared under its new conditions only
    compare([str(sets / "mood")], ["probe"], tmp_path, replace(quick(tiny_bert), rows=16), add=True)
    assert {task.name: task.conditions.rows for task in summarise(tmp_path).tasks} == {"mood": 16, "tone": 24}
    compare([str(sets / "mood")], ["probe"], tmp_path, replace(quick(tiny_bert), rows=16))
    assert [task.name for task in summarise(tmp_path).tasks] == ["mood"]


def test_the_report_as_json(compared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["compare", "--report", "--json", "--output", str(compared)])
    found = json.loads(capsys.readouterr().out)
    assert [task["name"] for task in found["tasks"]] == ["tone", "mood"]
    line = found["tasks"][0]["lines"][0]
    assert {"contender", "score", "against", "bytes", "trained", "seconds", "memory", "latency", "ece"} <= set(line)
    assert found["done"] == 8


def test_refused_together(compared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--report", "demo:intent"], []):
        with pytest.raises(SystemExit) as end:
            main(["compare", *arguments, "--output", str(compared)])
        assert end.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_pareto_is_what_nobody_beats() -> None:
    costs, found = [3.0, 1.0, 2.0, 2.0, 5.0], [0.9, 0.5, 0.7, 0.8, 0.9]
    nobody_beats = [
        i for i in range(5)
        if not any(
            costs[j] <= costs[i] and found[j] >= found[i] and (costs[j], found[j]) != (costs[i], found[i])
            for j in range(5)
        )
    ]  # fmt: skip
    assert sorted(pareto(costs, found)) == nobody_beats == [0, 1, 3]


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(304_416, "bytes", "304 kB"), (90_874_488, "bytes", "90.9 MB"), (7, "bytes", "7 B"), (0.8, "ms", "800 µs"),
     (12.34, "ms", "12.3 ms"), (2500, "ms", "2.5 s"), (0, "ms", "0 µs")],
)  # fmt: skip
def test_amounts_read_well(value: float, unit: str, text: str) -> None:
    assert amount(value, unit) == text


def test_differences_read_well() -> None:
    assert estimate(Estimate(0.0123, -0.004, 0.02)) == "+0.012 (−0.004 to +0.020)"
    assert signed(-0.0001) == "0"
    pairs = {"a": {"b": Estimate(0.2, 0.1, 0.3)}, "b": {"a": Estimate(-0.2, -0.3, -0.1)}}
    assert shade(Estimate(0.01, -0.1, 0.1), pairs) == ""
    assert "50%" in shade(pairs["a"]["b"], pairs)


def test_folds_make_one_score(sets: Path, tiny_bert: Path, tmp_path: Path) -> None:
    compare([str(sets / "grade")], ["probe"], tmp_path, quick(tiny_bert))
    (task,) = summarise(tmp_path).tasks
    assert task.folds == 5
    rows = [row for record in read(tmp_path / "runs").values() for row in record["attentune"]["rows"]["values"]]
    assert len(rows) == 30
    assert task.lines[0].score.value == pytest.approx(np.corrcoef(np.array(rows).T)[0, 1])


def test_cross_validation_tests_every_row_once(sets: Path) -> None:
    chosen = load_set(str(sets / "grade"))
    folds = [chosen.fold(number, 1000, 1000) for number in range(chosen.folds)]
    everything = [*chosen.data.train, *chosen.data.validation, *chosen.data.test]
    assert sorted(map(str, everything)) == sorted(str(row) for fold in folds for row in fold.test)
    for fold in folds:
        parts = [*fold.train, *fold.validation, *fold.test]
        assert sorted(map(str, parts)) == sorted(map(str, everything))
    small = chosen.fold(0, 10, 1000)
    assert len(small.train) <= 10
    tone = load_set(str(sets / "tone"))
    assert tone.folds == 1
    assert tone.fold(0, 7, 100).test == tone.fold(0, 9, 100).test
    assert load_set("demo:intent").name == "intent"


def test_the_schedule_waits_for_the_rates_and_for_the_time(sets: Path, tiny_bert: Path) -> None:
    cells = plan([load_set(str(sets / "tone"))], ["pasta"], quick(tiny_bert), rates=3, seeds=2)
    now = 0.0
    schedule = Schedule(cells, until=10, clock=lambda: now)
    runs = [schedule.ask() for _ in range(4)]
    trials = [run for run in runs if run is not None]
    assert [run.rate for run in trials] == [0.01, 0.03, 0.0033]
    schedule.tell(trials[0], 0.5)
    schedule.tell(trials[1], 0.7)
    assert schedule.ask() is None
    schedule.tell(trials[2], None)  # it failed
    later = schedule.ask()
    assert later is not None
    assert (later.rate, later.seed) == (0.03, 1)
    now = 10.0
    assert len(list(schedule.due())) == 1
    assert Schedule(cells, until=10, clock=lambda: now).ask() is None


KILLED = """
import os, signal, sys
from attentune.comparison import compare as module

write = module.write
def killing(folder, run, record):
    write(folder, run, record)
    if len(list(folder.glob("*.json"))) == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
module.write = killing
from attentune.cli import main
main(sys.argv[2:])
"""


@pytest.mark.slow
def test_a_kill_loses_one_run_at_most(sets: Path, tiny_bert: Path, tmp_path: Path) -> None:
    common = ["--methods", "pasta,lora", "--rates", "2", "--seeds", "1", "--rows", "24", "--epochs", "1"]
    command = ["compare", str(sets / "tone"), *common, "--output", str(tmp_path), "--backbone", str(tiny_bert)]
    environment = {**os.environ, "PYTHONPATH": str(Path(attentune.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", KILLED, "2", *command], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*.json")}
    assert len(before) == 2
    (tmp_path / "runs" / "torn.new").write_text('{"run_info')
    with pytest.raises(SystemExit) as end:
        main([*command, "--json"])
    assert end.value.code == 0
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*.json")}
    assert len(after) == 4
    assert before.items() <= after.items()


@pytest.mark.slow
def test_two_processes_give_what_one_gives(sets: Path, tiny_bert: Path, tmp_path: Path) -> None:
    scores: list[dict[str, float]] = []
    for workers in (1, 2):
        folder = tmp_path / str(workers)
        compare([str(sets / "tone")], ["pasta", "lora"], folder, quick(tiny_bert), rates=1, seeds=2, workers=workers)
        scores.append({key: record["attentune"]["test"] for key, record in read(folder / "runs").items()})
    assert scores[0] == scores[1]
    assert len(scores[0]) == 4


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own threads and sockets, at its start and end
def test_a_ray_cluster_gives_what_one_process_gives(sets: Path, tiny_bert: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    given: dict[str, Any] = {"rates": 2, "seeds": 1}
    compare([str(sets / "tone")], ["pasta"], tmp_path / "one", quick(tiny_bert), **given)
    compare(
        [str(sets / "tone")], ["pasta"], tmp_path / "ray", quick(tiny_bert), **given, workers=2, ray_address="local"
    )
    one, other = (read(tmp_path / name / "runs") for name in ("one", "ray"))
    assert {k: r["attentune"]["test"] for k, r in one.items()} == {k: r["attentune"]["test"] for k, r in other.items()}
    assert len(one) == 2


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


def test_a_run_is_known_by_all_that_decides_it(sets: Path, tiny_bert: Path) -> None:
    run = a_run(sets / "tone", "pasta", quick(tiny_bert))
    others = [
        replace(run, rate=0.5), replace(run, seed=1), replace(run, rows="0" * 16), replace(run, options={}),
        replace(run, conditions=replace(run.conditions, epochs=2)),
        a_run(sets / "tone", "pasta", quick(tiny_bert, attention_dropout=0.0)),
    ]  # fmt: skip
    assert len({run.hash, *(other.hash for other in others)}) == 7
    assert replace(run, source="elsewhere").hash == run.hash


def test_refusals(sets: Path, tiny_bert: Path, tmp_path: Path) -> None:
    tone, conditions = str(sets / "tone"), quick(tiny_bert)
    with pytest.raises(ConfigError, match="no contender 'lroa'; there are tiny_attention"):
        compare([tone], ["lroa"], tmp_path, conditions)
    with pytest.raises(ConfigError, match="two tasks are named 'tone'"):
        compare([tone, tone], ["pasta"], tmp_path, conditions)
    with pytest.raises(ConfigError, match="at least one contender is needed"):
        compare([tone], [], tmp_path, conditions)
    with pytest.raises(ConfigError, match="rates=0"):
        compare([tone], ["pasta"], tmp_path, conditions, rates=0)
    with pytest.raises(ConfigError, match="epochs is above 0"):
        Conditions(epochs=0)
    with pytest.raises(ConfigError, match="frozen is one of float32"):
        Conditions(frozen="int3")  # pyright: ignore[reportArgumentType]
    with pytest.raises(StoreError, match="no comparison at"):
        summarise(tmp_path / "nothing")
    assert not list(tmp_path.iterdir())


def test_what_a_backbone_cannot_have_is_refused() -> None:
    from transformers import T5Config, T5EncoderModel

    base = T5EncoderModel(T5Config(vocab_size=50, d_model=16, d_kv=4, d_ff=32, num_layers=1, num_heads=4))
    assert peft_config("lora", base.encoder).target_modules
    from attentune.comparison.contenders import _free_biases

    with pytest.raises(UnsupportedError, match="this backbone has none"):
        _free_biases(base)
