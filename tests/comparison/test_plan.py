"""What is compared: rates and seeds, folds, commands, and that no run is done twice."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_train import rows_of

import attentune
from attentune.cli import main
from attentune.comparison.compare import compare, plan, read_plan
from attentune.comparison.plan import Conditions, Run, Schedule
from attentune.comparison.records import read
from attentune.comparison.sets import Reading, load_set
from attentune.comparison.summary import summarise
from attentune.errors import ConfigError, StoreError

from .kit import a_run, both, quick


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
    assert found.ranked == ("tone", "mood")
    assert set(found.ranks) == {"pasta", "probe"}
    for task in found.tasks:
        for line in task.lines:
            assert line.score.low <= line.score.value <= line.score.high
            assert (line.against is None) == (line.contender == task.reference)
        # The probe has one run, which is the same with every seed: it is beside both of the other.
        assert {line.contender: line.seeds for line in task.lines} == {"pasta": 2, "probe": 1}
        one, other = task.lines
        found = task.pairs[one.contender][other.contender]
        assert found.value == pytest.approx(one.score.value - other.score.value)


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


def test_a_small_test_split_is_kept_where_few_rows_were_given_to_learn_from(tmp_path: Path) -> None:
    """32/32/56 is a task of 32 shots: its test rows are not to learn from."""
    sizes = {"shots": (32, 32, 56), "large": (400, 40, 56), "split": (100, 20, 90), "untested": (32, 90, 0)}
    for name, counts in sizes.items():
        (tmp_path / name).mkdir()
        for seed, (split, count) in enumerate(zip(("train", "validation", "test"), counts, strict=True)):
            lines = "\n".join(json.dumps(row) for row in rows_of("classification", count, seed))
            if count:
                (tmp_path / name / f"{split}.jsonl").write_text(lines)
    chosen = {name: load_set(str(tmp_path / name)) for name in sizes}
    assert {name: one.folds for name, one in chosen.items()} == {"shots": 1, "large": 5, "split": 1, "untested": 5}
    fold = chosen["shots"].fold(0, 1000, 1000)
    assert (fold.train, fold.test) == (chosen["shots"].data.train, chosen["shots"].data.test)
    assert [len(fold.train), len(fold.validation), len(fold.test)] == [32, 32, 56]


def test_stored_runs_keep_their_names() -> None:
    folder = Path(__file__).parents[2] / "benchmarks" / "results" / "comparison"
    records = read(folder / "runs")
    for name, record in records.items():
        key: dict[str, Any] = {**record["attentune"]["key"], "source": ""}
        assert replace(Run(**key), conditions=Conditions(**key["conditions"])).hash == name
    validation = {name: record["attentune"]["validation"] for name, record in records.items()}
    assert any(cell.counted(validation) for cell in read_plan(folder))


def test_columns_are_named_once_for_all_tasks(
    tiny_bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--methods", "probe", "--rates", "1", "--seeds", "1", "--rows", "24", "--max-length", "24",
              "--backbone", str(tiny_bert), "--output", str(tmp_path / "out"), "--workers", "0"]  # fmt: skip
    for name in ("one", "two"):
        rows = [{"id": name, "said": row["text"], "mood": row["label"]} for row in rows_of("classification")]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    files = [str(tmp_path / f"{name}.jsonl") for name in ("one", "two")]
    with pytest.raises(SystemExit) as end:
        main(["compare", *files, *common])
    assert end.value.code == 2
    assert "no column looks like text" in capsys.readouterr().err
    named = ["--task", "classification", "--text", "said", "--label", "mood"]
    with pytest.raises(SystemExit) as end:
        main(["compare", *files, *common, *named])
    assert end.value.code == 0
    assert [len(task.lines) for task in summarise(tmp_path / "out").tasks] == [1, 1]
    # The plan keeps how its tasks are read, so that they go on when others are added.
    (tmp_path / "three.jsonl").write_text("\n".join(json.dumps(row) for row in rows_of("classification")))
    for path in list((tmp_path / "out" / "runs").glob("two-*")):
        path.unlink()
    with pytest.raises(SystemExit) as end:
        main(["compare", str(tmp_path / "three.jsonl"), *common, "--add"])
    assert end.value.code == 0
    assert [task.name for task in summarise(tmp_path / "out").tasks] == ["three", "one", "two"]


def test_columns_of_choices_are_named(tmp_path: Path) -> None:
    rows = [{"said": row["question"], "x": row["choices"][0], "y": row["choices"][1], "right": row["label"] % 2}
            for row in rows_of("multiple_choice")]  # fmt: skip
    path = tmp_path / "choices.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    chosen = load_set(str(path), Reading("multiple_choice", ("said",), "right", ("x", "y")))
    assert chosen.data.kind == "multiple_choice"
    assert chosen.data.columns.choices == ("x", "y")


def test_how_rows_were_named_is_no_part_of_a_run(sets: Path, tiny_bert: Path) -> None:
    """Only what was read is."""
    conditions = quick(tiny_bert)
    guessed, named = (
        plan([load_set(str(sets / "tone"), reading)], ["pasta"], conditions, 1, 1)[0].first
        for reading in (Reading(), Reading("classification", ("text",), "label"))
    )
    assert guessed != named
    assert guessed.hash == named.hash


def test_workers_elsewhere_find_what_was_named_from_here(
    sets: Path, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "elsewhere").mkdir()
    shutil.copytree(sets / "tone", tmp_path / "here" / "tone")
    shutil.copytree(tiny_bert, tmp_path / "here" / "bert")
    monkeypatch.chdir(tmp_path / "here")

    def drain(function: Any, ask: Any, workers: int, ray_address: str | None) -> Any:
        assert ray_address == "auto"
        while (item := ask()) is not None:
            with monkeypatch.context() as away:
                away.chdir(tmp_path / "elsewhere")
                result = function(item)
            yield item, result

    monkeypatch.setattr("attentune.comparison.pool.drain", drain)
    schedule = compare(["tone"], ["probe"], "out", quick(Path("bert")), rates=1, seeds=1, ray_address="auto")
    assert schedule.failed == []
    (cell,) = read_plan("out")
    assert (cell.first.source, cell.first.conditions.backbone) == ("tone", "bert")
    (record,) = read(tmp_path / "here" / "out" / "runs").values()
    assert record["attentune"]["key"] == cell.first.key
    assert record["run_info"]["train_config"]["model_id"] == "bert"


def test_a_run_is_known_by_all_that_decides_it(sets: Path, tiny_bert: Path) -> None:
    run = a_run(sets / "tone", "pasta", quick(tiny_bert))
    others = [
        replace(run, rate=0.5), replace(run, seed=1), replace(run, rows="0" * 16), replace(run, options={}),
        replace(run, conditions=replace(run.conditions, epochs=2)),
        a_run(sets / "tone", "pasta", quick(tiny_bert, attention_dropout=0.0)),
    ]  # fmt: skip
    assert len({run.hash, *(other.hash for other in others)}) == 7
    assert replace(run, source="elsewhere").hash == run.hash


def test_refused_together(compared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--report", "demo:intent"], []):
        with pytest.raises(SystemExit) as end:
            main(["compare", *arguments, "--output", str(compared)])
        assert end.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1


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
    for workers in (0, 2):
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
