"""Training end to end on a tiny backbone: every kind of task, every method, resume after a kill, two processes."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

import attentune
from attentune.errors import AttentuneError, ConfigError, DataError, StoreError
from attentune.evaluation.calibration import Reliability
from attentune.methods import METHODS
from attentune.tasks import load_data
from attentune.training.checkpoints import Mark
from attentune.training.choice import choose
from attentune.training.loop import build_trainer
from attentune.training.many import train_many
from attentune.training.recipe import read_recipe
from attentune.training.seeds import train_seeds
from attentune.training.train import train

QUICK: dict[str, Any] = {"epochs": 2, "batch_size": 8, "max_length": 24, "stride": 6, "patience": 0}


def rows_of(kind: str, count: int = 32, seed: int = 0) -> list[dict[str, Any]]:
    """Rows that a few words decide."""
    rng = random.Random(seed)
    rows: list[dict[str, Any]] = []
    for i in range(count):
        good = i % 2 == 1
        words = [*rng.sample(["the", "film", "plot", "rain", "sun", "a"], 3), "good" if good else "bad"]
        text = " ".join(words)
        if kind == "classification":
            rows.append({"text": text, "label": "pos" if good else "neg"})
        elif kind == "pair":
            rows.append({"text": text, "text_pair": "the plot", "label": ["no", "yes", "so"][i % 3]})
        elif kind == "multilabel":
            rows.append({"text": text, "label": ["pos"] * good + ["wet"] * ("rain" in words)})
        elif kind == "regression":
            rows.append({"text": text, "label": 3.5 + good})
        elif kind == "question_answering":
            found = {"text": [words[1]], "answer_start": [text.index(words[1])]}
            none: dict[str, Any] = {"text": [], "answer_start": []}
            context = f"{text} . " + "is it long ? " * 8
            rows.append({"question": "what ?", "context": context, "answers": found if good else none})
        elif kind == "multiple_choice":
            right = rng.randrange(2 + i % 2)
            choices = [f"{'good' if n == right else 'bad'} {word}" for n, word in enumerate(words[: 2 + i % 2])]
            rows.append({"question": "what ?", "choices": choices, "label": right})
        else:
            tags = ["B-PER" if good else "O", "O", "O", "B-LOC"]
            rows.append({"tokens": ["Anna" if good else "rain", "visits", "the", "river"], "tags": tags})
    return rows


FOLDER = {
    "adapter_config.json",
    "adapter_model.safetensors",
    "task.json",
    "recipe.toml",
    "metrics.json",
    "log.jsonl",
    "README.md",
}
KINDS = ("classification", "pair", "multilabel", "regression", "tagging", "question_answering", "multiple_choice")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_task(tiny_bert: Path, tmp_path: Path, kind: str) -> None:
    data = {"train": rows_of(kind), "validation": rows_of(kind, 9), "test": rows_of(kind, 7, seed=1)}
    lines: list[str] = []
    result = train(data, "pasta", tmp_path / "a", str(tiny_bert), report=lines.append, **QUICK)
    assert {f.name for f in result.folder.iterdir()} == FOLDER
    assert not (tmp_path / "a.training").exists()
    assert [line[:9] for line in lines if line.startswith("epoch")] == ["epoch 1.0", "epoch 2.0"]
    saved = json.loads((result.folder / "metrics.json").read_text())
    assert saved == result.metrics
    adapter = attentune.load(result.folder)
    # The folder gives the same answers as the model in memory did.
    for split in ("test", "validation"):
        found = adapter.evaluate(data, split=split)
        assert found == pytest.approx({**saved[split], **saved["calibration"][split]}, rel=1e-4, abs=1e-5)
        bins = saved.get("reliability", {}).get(split, {})
        errors = {name: Reliability.from_card(card).error for name, card in bins.items()}
        assert errors.get("after") == pytest.approx(found.get("ece"), abs=1e-4)
        assert errors.get("before") == pytest.approx(found.get("ece_before"), abs=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns(tiny_bert: Path, tmp_path: Path, method: str) -> None:
    rows = rows_of("classification", 64)
    options: dict[str, Any] = {**QUICK, "epochs": 12, "learning_rate": 0.02, "head_learning_rate": 0.02}
    result = train({"train": rows, "validation": rows}, method, tmp_path / "a", str(tiny_bert), **options)
    assert result.metrics["validation"]["accuracy"] > 0.9
    config = json.loads((result.folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tiny_bert)
    assert read_recipe(result.folder / "recipe.toml").method == method


@pytest.mark.parametrize("kind", ["question_answering", "multiple_choice"])
def test_rows_of_several_sequences_are_learned(tiny_bert: Path, tmp_path: Path, kind: str) -> None:
    rows = rows_of(kind, 48)
    lines: list[str] = []
    options: dict[str, Any] = {**QUICK, "epochs": 14, "learning_rate": 0.02, "head_learning_rate": 0.02}
    data = {"train": rows, "validation": rows}
    result = train(data, "kernel_mix", tmp_path / "a", str(tiny_bert), report=lines.append, **options)
    losses = [float(line.split("loss ")[1].split(",")[0]) for line in lines if line.startswith("epoch")]
    assert losses[-1] < losses[0] / 2
    scores = result.metrics["validation"]
    assert scores[result.card.task.main_metric] > 0.8
    if kind == "question_answering":
        assert scores.keys() == {"f1", "exact_match", "unanswerable", "answerable_f1", "answerable_exact_match"}


def test_same_seed_same_tensors(tiny_bert: Path, tmp_path: Path) -> None:
    runs = [
        train(rows_of("classification"), "tiny_attention", tmp_path / name, str(tiny_bert), seed=seed, **QUICK)
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    a, b, c = (load_file(run.folder / "adapter_model.safetensors") for run in runs)
    assert all(a[key].equal(b[key]) for key in a)
    assert not all(a[key].equal(c[key]) for key in a)


def test_the_best_epoch_is_kept_and_patience_ends(tiny_bert: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    rows = rows_of("classification")
    wild: dict[str, Any] = {**QUICK, "epochs": 30, "patience": 2, "learning_rate": 0.05, "metric": "accuracy"}
    result = train({"train": rows, "dev": rows}, "pasta", tmp_path / "a", str(tiny_bert), report=lines.append, **wild)
    seen = [float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("epoch")]
    assert result.metrics["validation"]["accuracy"] == pytest.approx(max(seen), abs=1e-4)
    assert len(seen) == seen.index(max(seen)) + 3 < 30
    assert "stopped: validation accuracy was no better for 2 evaluations; the best is kept" in lines


def test_an_adapter_that_will_be_replaced_is_told_of(tiny_bert: Path, tmp_path: Path) -> None:
    rows, lines = rows_of("classification", 16), list[str]()
    options: dict[str, Any] = {**QUICK, "epochs": 1}
    for method in ("pasta", "kernel_mix"):
        train(rows, method, tmp_path / "a", str(tiny_bert), report=lines.append, **options)
    train_many({"a": rows}, tmp_path, str(tiny_bert), method="pasta", report=lines.append, **options)
    told = "a holds an adapter already; the new one takes its place when it is done"
    assert lines.count(told) == 2
    assert not any(line.startswith("stopped") for line in lines)


def test_a_step_is_the_mean_of_its_batches(tiny_bert: Path, tmp_path: Path) -> None:
    rows = rows_of("classification", 8)
    data = {"train": rows, "validation": rows}
    losses: list[float] = []
    for size in (8, 2):
        lines: list[str] = []
        options: dict[str, Any] = {**QUICK, "epochs": 1, "batch_size": size, "accumulate": 8 // size}
        run = train(data, "pasta", tmp_path / f"{size}", str(tiny_bert), report=lines.append, **options)
        assert run.metrics["run"]["steps"] == 1
        losses += [float(line.split("loss ")[1].split(",")[0]) for line in lines if line.startswith("epoch")]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)  # the backbone's own dropout draws anew


def test_long_texts_leave_room_for_the_prompt(tiny_bert: Path, tmp_path: Path) -> None:
    rows = [{"text": "good " * 80, "label": "a"}, {"text": "bad " * 80, "label": "b"}] * 4
    options: dict[str, Any] = {**QUICK, "max_length": 500, "epochs": 1}
    data = {"train": rows, "validation": rows}
    lines: list[str] = []
    result = train(data, "prefix_propagation", tmp_path / "a", str(tiny_bert), report=lines.append, **options)
    card = attentune.load(result.folder).card
    assert 40 < card.max_length < 64
    assert f"max_length: of 16 of 16 rows only the first {card.max_length} tokens are read" in lines
    assert attentune.load(result.folder).predict(["good " * 80])[0]["truncated"]


@pytest.mark.parametrize("method", ["prefix_propagation", "tiny_attention"])
def test_checkpointing_computes_the_same(tiny_bert: Path, tmp_path: Path, method: str) -> None:
    rows = rows_of("classification")
    once: dict[str, Any] = {**QUICK, "epochs": 1}
    runs = [train(rows, method, tmp_path / str(on), str(tiny_bert), checkpointing=on, **once) for on in (True, False)]
    a, b = (load_file(run.folder / "adapter_model.safetensors") for run in runs)
    for key in a:
        torch.testing.assert_close(a[key], b[key], atol=1e-5, rtol=1e-4)


def test_refusals(tiny_bert: Path, tmp_path: Path) -> None:
    rows = rows_of("classification")
    where = str(tiny_bert)
    with pytest.raises(ConfigError, match="no method 'lora'; the methods are tiny_attention"):
        train(rows, "lora", tmp_path / "a", where)
    with pytest.raises(ConfigError, match=r"^a recipe has no key 'epoch', did you mean 'epochs'\?$"):
        train(rows, "pasta", tmp_path / "a", where, epoch=3)
    with pytest.raises(ConfigError, match="no metric 'f2' for classification; there are accuracy"):
        train(rows, "pasta", tmp_path / "a", where, metric="f2")
    with pytest.raises(ConfigError, match="max_length leaves 2 tokens"):
        train(rows, "pasta", tmp_path / "a", where, max_length=2)
    with pytest.raises(DataError, match="no column 'words'"):
        train(rows, "pasta", tmp_path / "a", where, text=["words"])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(StoreError, match="is no adapter folder; name another one"):
        train(rows, "pasta", tmp_path / "mine", where)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "x"
    with pytest.raises(AttentuneError):
        train(rows, "pasta", tmp_path / "a", where, precision="int3")


def test_data_are_as_they_were_read() -> None:
    """What a recipe says of rows that are read already is what they were read with, or it is refused."""
    rows = [{"a": f"what {i}", "b": "x y", "c": ["yes", "no", "oos"][i % 3]} for i in range(30)]
    given: dict[str, Any] = {"kind": "classification", "text": ["a"], "label": "c", "out_of_scope": "oos"}
    scoped, plain = load_data(rows, **given), load_data(rows, text=["a"], label="c")
    assert choose(scoped, None, None, {f"task.{key}": value for key, value in given.items()})[0] is scoped
    assert choose(scoped, None, None, {"validation": 0.3})[0] is scoped
    changes: list[dict[str, Any]] = [
        {"task.kind": "pair"}, {"task.kind": "multilabel"}, {"task.text": ["a", "b"]}, {"task.label": "b"},
        {"choices": ["a", "b"]}, {"out_of_scope": "oos"},
    ]  # fmt: skip
    for change in changes:
        ((key, value),) = change.items()
        wanted = f"{key.removeprefix('task.')}={value!r} is asked of data that were read with"
        with pytest.raises(ConfigError, match=re.escape(wanted)):
            choose(plain, None, None, change)
    pairs = load_data(rows, kind="pair", text=["a", "b"], label="c")
    assert choose(pairs, None, None, {"task.kind": "pair"})[0] is pairs


def test_a_class_that_validation_does_not_have_can_choose_the_epoch(tiny_bert: Path, tmp_path: Path) -> None:
    rows = rows_of("classification")
    data = {"train": rows, "validation": rows[:8:2]}
    options: dict[str, Any] = {**QUICK, "metric": "f1_pos", "learning_rate": 0.05}
    assert train(data, "pasta", tmp_path / "a", str(tiny_bert), **options).metrics["validation"]["f1_pos"] == 0.0


def test_two_rows_are_trained_on(tiny_bert: Path, tmp_path: Path) -> None:
    (tmp_path / "two.csv").write_text("text,label\ngood film,pos\nbad film,neg\n")
    result = train(tmp_path / "two.csv", "pasta", tmp_path / "a", str(tiny_bert), **QUICK)
    assert result.metrics["baseline"]["accuracy"] == 0.0


@pytest.mark.parametrize("kind", ["classification", "regression", "tagging"])
def test_a_diverged_training_writes_nothing(tiny_bert: Path, tmp_path: Path, kind: str) -> None:
    wild: dict[str, Any] = {**QUICK, "learning_rate": 1e30}
    with pytest.raises(ConfigError, match=r"training diverged: .*; learning_rate=1e\+30 is probably too high"):
        train(rows_of(kind), "pasta", tmp_path / "a", str(tiny_bert), **wild)
    assert not (tmp_path / "a").exists()


def test_a_rate_of_0_leaves_the_head_as_it_starts(tiny_bert: Path, tmp_path: Path) -> None:
    still: list[dict[str, Any]] = [{**QUICK, "head_learning_rate": 0.0, "epochs": epochs} for epochs in (1, 2)]
    runs = [
        train(rows_of("classification"), "pasta", tmp_path / f"{i}", str(tiny_bert), **options)
        for i, options in enumerate(still)
    ]
    one, two = (load_file(run.folder / "adapter_model.safetensors") for run in runs)
    assert one.keys() == two.keys()
    changed = {key for key in one if not one[key].equal(two[key])}
    assert changed == {key for key in one if "shift" in key}


def test_a_kill_while_the_mark_is_written_means_a_new_start(tiny_bert: Path, tmp_path: Path) -> None:
    (tmp_path / "a.training").mkdir()
    (tmp_path / "a.training" / "run.id").write_text("")
    train(rows_of("classification"), "pasta", tmp_path / "a", str(tiny_bert), resume=True, **QUICK)
    assert {path.name for path in tmp_path.iterdir()} == {"a"}


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_of_the_user_is_no_place_for_checkpoints(tiny_bert: Path, tmp_path: Path, resume: bool) -> None:
    mine = tmp_path / "a.training"
    (mine / "frozen").mkdir(parents=True)
    for name in ("train.jsonl", "frozen/notes.txt"):
        (mine / name).write_text("\n".join(map(json.dumps, rows_of("classification"))))
    wanted = "it holds frozen, which no run left; move it, or name another output"
    with pytest.raises(ConfigError, match=wanted):
        train(mine, "pasta", tmp_path / "a", str(tiny_bert), resume=resume, **QUICK)
    seeds = shutil.copytree(mine, tmp_path / "a.seeds")
    shutil.move(mine, tmp_path / "data")
    with pytest.raises(ConfigError, match=wanted):
        train_seeds(tmp_path / "data", "pasta", tmp_path / "a", str(tiny_bert), resume=resume, seeds=2, **QUICK)
    for folder in (tmp_path / "data", seeds):
        assert {path.name for path in folder.rglob("*")} == {"train.jsonl", "frozen", "notes.txt"}
    assert {path.name for path in tmp_path.iterdir()} == {"data", "a.seeds"}


def test_a_folder_is_known_as_ours_whenever_a_kill_strikes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = Mark(tmp_path / "a.training" / "run.id", "a run")
    left = mark.path.with_name("checkpoint-1")

    def killed(*args: Any, **given: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            mark.begin()  # while the mark is written
    mark.begin()
    left.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            mark.end()  # while the folder is emptied
    # Half of what was there is nothing to go on with, and no reason to refuse a fresh start.
    assert left.exists()
    assert not mark.goes_on("another run")
    mark.begin()
    assert [path.name for path in mark.path.parent.iterdir()] == ["run.id"]
    assert mark.goes_on("another run")
    mark.end()
    mark.end()
    assert list(tmp_path.iterdir()) == []


class KillAtTheEnd(TrainerCallback):
    """Strikes after the last checkpoint."""

    def on_save(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        if control.should_training_stop:
            raise KeyboardInterrupt


def kill_at_the_end(backbone: Path, output: Path, **options: Any) -> None:
    def deadly(**given: Any) -> Any:
        trainer = build_trainer(**given)
        trainer.add_callback(KillAtTheEnd())
        return trainer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("attentune.training.train.build_trainer", deadly)
        with pytest.raises(KeyboardInterrupt):
            train(rows_of("classification", 40), "pasta", output, str(backbone), **options)
    assert not output.exists()


def same(a: Path, b: Path) -> None:
    """Equal tensors after equally many steps, each evaluated once."""
    mine, theirs = (load_file(folder / "adapter_model.safetensors") for folder in (a, b))
    assert mine.keys() == theirs.keys()
    assert all(mine[key].equal(theirs[key]) for key in mine)
    runs = [json.loads((folder / "metrics.json").read_text())["run"] for folder in (a, b)]
    assert runs[0]["steps"] == runs[1]["steps"]
    logs = [[json.loads(line)["step"] for line in (f / "log.jsonl").read_text().splitlines()] for f in (a, b)]
    assert logs[0] == logs[1]


@pytest.mark.parametrize(
    "options",
    [
        {"epochs": 1.5, "schedule": "constant"},
        {"epochs": 1.5, "schedule": "polynomial"},
        {"epochs": 9, "patience": 1, "eval_steps": 3},
    ],
)
def test_a_run_that_was_over_is_not_trained_further(tiny_bert: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    options = {**QUICK, **options}
    whole = train(rows_of("classification", 40), "pasta", tmp_path / "whole", str(tiny_bert), **options)
    kill_at_the_end(tiny_bert, tmp_path / "a", **options)
    again = train(rows_of("classification", 40), "pasta", tmp_path / "a", str(tiny_bert), resume=True, **options)
    same(whole.folder, again.folder)


def test_the_best_epoch_is_found_where_the_checkpoints_have_moved(tiny_bert: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {**QUICK, "epochs": 9, "patience": 1}
    rows = rows_of("classification", 40)
    whole = train(rows, "pasta", tmp_path / "whole", str(tiny_bert), **options)
    kill_at_the_end(tiny_bert, tmp_path / "a", **options)
    moved = shutil.move(tmp_path / "a.training", tmp_path / "b.training")
    shutil.copytree(moved, tmp_path / "c.training")
    again = train(rows, "pasta", tmp_path / "b", str(tiny_bert), resume=True, **options)
    same(whole.folder, again.folder)
    best = min((tmp_path / "c.training").glob("checkpoint-*"), key=lambda f: int(f.name.split("-")[1]))
    shutil.rmtree(best)
    with pytest.raises(ConfigError, match=rf"has no {best.name}, its best checkpoint; start again without resume"):
        train(rows, "pasta", tmp_path / "c", str(tiny_bert), resume=True, **options)
    lines: list[str] = []
    train(rows, "pasta", tmp_path / "c", str(tiny_bert), report=lines.append, **options)
    assert "c.training holds this run, interrupted; it begins anew, and --resume would go on" in lines


KILLED = """
import os, signal, sys
from pathlib import Path
from transformers import TrainerCallback
from attentune.training import loop
import test_train

class Kill(TrainerCallback):
    def on_step_end(self, args, state, control, **given):
        if state.global_step == int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)

if int(sys.argv[3]):
    build = loop.build_trainer
    def killing(**given):
        trainer = build(**given)
        trainer.add_callback(Kill())
        return trainer
    import attentune.training.train as module
    module.build_trainer = killing
test_train.run_to_be_killed(Path(sys.argv[1]), Path(sys.argv[2]), resume=True)
"""


def run_to_be_killed(backbone: Path, output: Path, resume: bool) -> None:
    options: dict[str, Any] = {**QUICK, "epochs": 4, "patience": 3, "eval_steps": 3}
    train(rows_of("classification", 40), "tiny_attention", output, str(backbone), resume=resume, **options)


def in_subprocess(*arguments: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": f"{Path(attentune.__file__).parents[1]}:{Path(__file__).parent}"}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.slow
def test_resume_after_kills_equals_never_killed(tiny_bert: Path, tmp_path: Path) -> None:
    run_to_be_killed(tiny_bert, tmp_path / "whole", resume=False)
    for step in (2, 8):  # before the first checkpoint, and after the second
        done = in_subprocess("-c", KILLED, tiny_bert, tmp_path / "killed", step)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert not (tmp_path / "killed").exists()
    newest = max((tmp_path / "killed.training").glob("checkpoint-*"), key=lambda f: int(f.name.split("-")[1]))
    torn = newest.with_name("checkpoint-99")
    torn.mkdir()
    (torn / "trainer_state.json").write_text('{"glob')
    done = in_subprocess("-c", KILLED, tiny_bert, tmp_path / "killed", 0)
    assert done.returncode == 0, done.stderr
    a, b = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "killed"))
    assert a.keys() == b.keys()
    assert all(a[key].equal(b[key]) for key in a)
    assert not (tmp_path / "killed.training").exists()


@pytest.mark.slow
def test_resume_refuses_another_run(tiny_bert: Path, tmp_path: Path) -> None:
    done = in_subprocess("-c", KILLED, tiny_bert, tmp_path / "a", 4)
    assert done.returncode == -signal.SIGKILL, done.stderr
    with pytest.raises(ConfigError, match="holds a run with other settings or data"):
        train(rows_of("classification", 40), "tiny_attention", tmp_path / "a", str(tiny_bert), resume=True, **QUICK)


@pytest.mark.slow
def test_two_processes_write_one_adapter(tiny_bert: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    splits = {"train": rows_of("tagging", 37), "validation": rows_of("tagging", 9, seed=1)}
    for name, rows in splits.items():
        (tmp_path / "data" / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    # --multi_gpu is accelerate's word for its one launcher of several processes; without a GPU they talk over gloo.
    launch = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", 2, "--main_process_port", 0)
    command = ("-m", "attentune.cli", "train", tmp_path / "data", "--output", tmp_path / "a", "--backbone", tiny_bert)
    done = in_subprocess(*launch, *command, "--set", "epochs=2", "--set", "batch_size=4", "--json")
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    printed = json.loads(line)
    assert {f.name for f in (tmp_path / "a").iterdir()} == FOLDER
    assert not (tmp_path / "a.training").exists()
    assert printed["run"]["steps"] == 2 * 5  # 37 rows, 8 in a step
    assert attentune.load(tmp_path / "a").judge(tmp_path / "data").scores == pytest.approx(printed["validation"])
