"""Many tasks trained together: each comes out as if it had been trained alone."""

import json
import shutil
import signal
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from test_train import FOLDER, QUICK, rows_of
from transformers import AutoModel, BertTokenizer, TrainerCallback

from attentune import store
from attentune.errors import AttentuneError, ConfigError, DataError, UnsupportedError
from attentune.methods import METHODS
from attentune.training.lanes import Lane, Stopped
from attentune.training.many import train_many
from attentune.training.recipe import method_options
from attentune.training.train import train

tf: Any = transformers  # Config classes take more fields than their signatures name.
SIZES: dict[str, Any] = {"max_position_embeddings": 64}
QUIET = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0)


def undropped(method: str) -> dict[str, Any]:
    """QUICK without the dropout of head and method."""
    own = {"method.dropout": 0.0} if "dropout" in method_options(method) else {}
    return {**QUICK, "task.dropout": 0.0, **own}


KINDS = ("classification", "regression", "tagging", "question_answering", "pair")


@pytest.fixture(scope="module")
def quiet(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny backbones without dropout: with it, the numbers that are drawn depend on what else is in the batch.

    In float64: Adam makes steps of full size of gradients that are nothing but rounding.
    """
    home = tmp_path_factory.mktemp("quiet")
    bert: Any = AutoModel.from_pretrained(tiny_bert)
    words, shape = bert.config.vocab_size, {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        roberta = tf.RobertaModel(
            tf.RobertaConfig(vocab_size=words, hidden_size=32, pad_token_id=0, **shape, **QUIET, **SIZES)
        )
        distil = tf.DistilBertModel(
            tf.DistilBertConfig(
                vocab_size=words,
                n_layers=2,
                n_heads=4,
                dim=32,
                hidden_dim=64,
                dropout=0.0,
                attention_dropout=0.0,
                **SIZES,
            )
        )
    for name, value in QUIET.items():
        setattr(bert.config, name, value)
    for name, model in (("bert", bert), ("roberta", roberta), ("distilbert", distil)):
        model.double().save_pretrained(home / name)
        BertTokenizer.from_pretrained(tiny_bert).save_pretrained(home / name)
    return {name: home / name for name in ("bert", "roberta", "distilbert")}


def data_of(kind: str, count: int, seed: int = 0) -> dict[str, Any]:
    return {"train": rows_of(kind, count, seed), "validation": rows_of(kind, 8, seed + 1)}


def same(mine: Path, theirs: Path) -> None:
    """Equal tensors, configs, recipes; equal scores; and the same answers."""
    a, b = load_file(mine / store.WEIGHTS), load_file(theirs / store.WEIGHTS)
    assert a.keys() == b.keys()
    for key, value in a.items():
        torch.testing.assert_close(value, b[key], atol=1e-9, rtol=1e-9)
    for name in (store.CONFIG, store.RECIPE):
        assert (mine / name).read_text() == (theirs / name).read_text()
    one, other = (json.loads((folder / store.METRICS).read_text()) for folder in (mine, theirs))
    assert one.keys() == other.keys()
    assert one["run"]["steps"] == other["run"]["steps"]
    assert one["validation"] == pytest.approx(other["validation"], abs=1e-6)
    logs = [[json.loads(line) for line in (folder / store.LOG).read_text().splitlines()] for folder in (mine, theirs)]
    assert [line["step"] for line in logs[0]] == [line["step"] for line in logs[1]]
    assert [line["loss"] for line in logs[0]] == pytest.approx([line["loss"] for line in logs[1]], abs=1e-6)


@pytest.mark.parametrize("backbone", ["bert", "roberta", "distilbert"])
@pytest.mark.parametrize("method", METHODS)
def test_together_is_each_alone(quiet: dict[str, Path], tmp_path: Path, method: str, backbone: str) -> None:
    """Tasks of two kinds, of unequal size, with a tight clip that only their own norm decides."""
    where = str(quiet[backbone])
    data = {f"{kind}{i}": data_of(kind, 8 + 9 * i, i) for i, kind in enumerate(("classification", "tagging"))}
    options: dict[str, Any] = {**undropped(method), "epochs": 1, "batch_size": 4, "clip": 0.05, "weight_decay": 0.1}
    results = train_many(data, tmp_path / "all", where, method=method, **options)
    assert list(results) == list(data)
    assert results.failed == {}
    assert {path.name for path in (tmp_path / "all").iterdir()} == set(data)
    for name, one in data.items():
        alone = train(one, method, tmp_path / "one" / name, where, **options)
        assert {f.name for f in results[name].folder.iterdir()} == FOLDER
        same(results[name].folder, alone.folder)


@pytest.mark.parametrize("method", ["pasta", "kernel_mix"])
def test_mixed_precision_is_that_of_each_alone(tiny_bert: Path, tmp_path: Path, method: str) -> None:
    """In steps taken together, too, every map of the backbone is in bfloat16; results differ by its rounding."""
    where = tmp_path / "bert"
    AutoModel.from_pretrained(tiny_bert, **QUIET).save_pretrained(where)
    BertTokenizer.from_pretrained(tiny_bert).save_pretrained(where)
    data = {f"{kind}{i}": data_of(kind, 8 + 9 * i, i) for i, kind in enumerate(("classification", "tagging"))}
    options: dict[str, Any] = {**undropped(method), "epochs": 1, "batch_size": 4, "precision": "bfloat16"}
    seen: list[torch.dtype] = []

    def look(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(module, torch.nn.Linear) and torch.is_grad_enabled():
            seen.append(output.dtype)

    with torch.nn.modules.module.register_module_forward_hook(look):
        results = train_many(data, tmp_path / "all", str(where), method=method, **options)
    assert results.failed == {}
    assert set(seen) == {torch.bfloat16}
    for name, one in data.items():
        alone = train(one, method, tmp_path / "one" / name, str(where), **options)
        a, b = (load_file(folder / store.WEIGHTS) for folder in (results[name].folder, alone.folder))
        assert a.keys() == b.keys()
        for key, value in a.items():
            assert (value - b[key]).norm() <= 0.01 * b[key].norm(), key


def test_every_kind_and_the_rhythm_of_each(quiet: dict[str, Path], tmp_path: Path) -> None:
    """Three at a time; steps of two batches that do not fall together; each ends when its own patience does."""
    where = str(quiet["bert"])
    data = {kind: data_of(kind, 16 + 3 * i, i) for i, kind in enumerate(KINDS)}
    options: dict[str, Any] = {**undropped("kernel_mix"), "epochs": 5, "patience": 1, "accumulate": 2, "batch_size": 4}
    results = train_many(data, tmp_path / "all", where, method="kernel_mix", together=3, **options)
    steps: set[int] = set()
    for kind, one in data.items():
        same(results[kind].folder, train(one, "kernel_mix", tmp_path / "one" / kind, where, **options).folder)
        steps.add(results[kind].metrics["run"]["steps"])
    assert len(steps) > 2


def test_checkpointing_and_words_for_classes(masked_bert: Path, tmp_path: Path) -> None:
    data = {name: data_of("classification", 12, i) for i, name in enumerate(("a", "b"))}
    rows = [{**row, "label": {"pos": "good", "neg": "bad"}[row["label"]]} for row in data["b"]["train"]]
    data["b"] = {"train": rows, "validation": rows}
    options: dict[str, Any] = {**QUICK, "template": "auto", "checkpointing": True}
    results = train_many(data, tmp_path / "all", str(masked_bert), **options)
    assert results["b"].card.task.to_card()["words"] == ["bad", "good"]
    assert "out_weight" in "".join(load_file(results["a"].folder / store.WEIGHTS))
    assert results["b"].metrics["run"]["steps"] == 4


def test_one_that_fails_does_not_keep_the_others(quiet: dict[str, Path], tmp_path: Path) -> None:
    lines: list[str] = []
    where = str(quiet["bert"])
    good = data_of("classification", 16)
    data: dict[str, Any] = {"good": good, "odd": tmp_path / "none.csv", "few": [{"text": "a"}], "last": good}
    results = train_many(data, tmp_path / "all", where, together=3, report=lines.append, **QUICK)
    assert list(results) == ["good", "last"]
    assert {name: type(error) for name, error in results.failed.items()} == {"odd": DataError, "few": DataError}
    assert next(line for line in lines if line.startswith("odd: ")).startswith("odd: not trained: no data at")
    assert {path.name for path in (tmp_path / "all").iterdir()} == {"good", "last"}
    # What is finished is left out the next time, as long as it is the same.
    before = (tmp_path / "all" / "good" / store.WEIGHTS).stat().st_mtime_ns
    again = train_many({**data, "odd": good}, tmp_path / "all", where, together=3, resume=True, **QUICK)
    assert set(again) == {"good", "odd", "last"}
    assert again["good"].metrics == results["good"].metrics
    assert (tmp_path / "all" / "good" / store.WEIGHTS).stat().st_mtime_ns == before
    shorter: dict[str, Any] = {**QUICK, "epochs": 1}
    changed = train_many({"good": good}, tmp_path / "all", where, resume=True, **shorter)
    assert changed["good"].metrics["run"]["steps"] < results["good"].metrics["run"]["steps"]
    assert not (tmp_path / "all.training").exists()


def test_a_step_that_fails_ends_those_who_take_it(quiet: dict[str, Path], tmp_path: Path) -> None:
    """Too little memory for three batches at once: what was finished stays, and the next task finds its room."""
    where, home = str(quiet["bert"]), tmp_path / "all"
    options: dict[str, Any] = {**undropped("kernel_mix"), "batch_size": 4, "together": 3}
    options["method"] = "kernel_mix"
    data = {name: data_of("classification", 4 if name == "done" else 12) for name in ("done", "a", "b", "c", "next")}
    lost: list[weakref.ref[torch.Tensor]] = []
    left: list[bool] = []
    lines: list[str] = []

    def short(module: torch.nn.Module, args: Any) -> None:
        if not isinstance(module, torch.nn.Linear) or not torch.is_grad_enabled() or not (home / "done").exists():
            return
        if len(args[0]) > 4:
            lost.append(weakref.ref(args[0]))
            raise torch.OutOfMemoryError("out of memory")
        left.extend(one() is not None for one in lost)

    with torch.nn.modules.module.register_module_forward_pre_hook(short):
        results = train_many(data, home, where, report=lines.append, **options)
    assert list(results) == ["done", "next"]
    assert {name: type(error) for name, error in results.failed.items()} == dict.fromkeys(
        ("a", "b", "c"), torch.OutOfMemoryError
    )
    assert all(f"{name}: not trained: OutOfMemoryError: out of memory" in lines for name in ("a", "b", "c"))
    assert "in forward" in results.failed["a"].__notes__[0]
    assert set(left) == {False}
    del options["together"]
    same(results["next"].folder, train(data["next"], output=tmp_path / "next", backbone=where, **options).folder)


class Interrupt(TrainerCallback):
    """Ctrl-C, which the main thread hears, while a task is at work and asks for nothing."""

    def on_evaluate(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        time.sleep(0.2)


def test_an_interrupt_leaves_no_task_at_work(
    quiet: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import attentune.training.train as module

    build = module.build_trainer

    def interrupted(**given: Any) -> Any:
        trainer = build(**given)
        trainer.add_callback(Interrupt())
        return trainer

    monkeypatch.setattr(module, "build_trainer", interrupted)
    data = {name: data_of("classification", 8) for name in ("a", "b", "c")}
    before = set(threading.enumerate())
    # Who runs the tests may have it ignored.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            train_many(data, tmp_path / "all", str(quiet["bert"]), together=2, **QUICK)
    finally:
        signal.signal(signal.SIGINT, handler)
    for thread in set(threading.enumerate()) - before:
        thread.join(60)
    assert set(threading.enumerate()) <= before
    assert not (tmp_path / "all" / "a").exists()


class Kill(TrainerCallback):
    """Strikes after so many evaluations of all tasks."""

    def __init__(self, after: list[int]) -> None:
        self.after = after

    def on_save(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self.after[0] -= 1
        if self.after[0] == 0:
            raise KeyboardInterrupt


def test_a_killed_run_goes_on(quiet: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import attentune.training.train as module

    data = {name: data_of("classification", 8 + 8 * i, i) for i, name in enumerate(("a", "b", "c"))}
    options: dict[str, Any] = {**undropped("pasta"), "epochs": 3, "together": 2}
    whole = train_many(data, tmp_path / "whole", str(quiet["bert"]), **options)
    build, left = module.build_trainer, [6]

    def deadly(**given: Any) -> Any:
        trainer = build(**given)
        trainer.add_callback(Kill(left))
        return trainer

    monkeypatch.setattr(module, "build_trainer", deadly)
    with pytest.raises(KeyboardInterrupt):
        train_many(data, tmp_path / "all", str(quiet["bert"]), **options)
    found = {path.name for path in (tmp_path / "all").iterdir()}
    assert "a" in found  # finished
    assert any(name.endswith(".training") for name in found)
    monkeypatch.undo()
    results = train_many(data, tmp_path / "all", str(quiet["bert"]), resume=True, **options)
    for name, one in whole.items():
        same(results[name].folder, one.folder)
    assert {path.name for path in (tmp_path / "all").iterdir()} == set(data)


def test_refusals(quiet: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, where = rows_of("classification"), str(quiet["bert"])
    output = tmp_path / "all"
    with pytest.raises(ConfigError, match="no task given"):
        train_many({}, output, where)
    with pytest.raises(ConfigError, match=r"a task's name is that of its folder, found '\.\./a'"):
        train_many({"../a": rows}, output, where)
    with pytest.raises(ConfigError, match="at least one task is trained at a time, found together=0"):
        train_many({"a": rows}, output, where, together=0)
    with pytest.raises(ConfigError, match="no method 'lora'; the methods are tiny_attention"):
        train_many({"a": rows, "b": rows}, output, where, method="lora")
    with pytest.raises(AttentuneError, match=r"reporting to wandb|wandb follows one run of a process"):
        train_many({"a": rows}, output, where, report_to=["wandb"])
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UnsupportedError, match="do so in one process"):
        train_many({"a": rows}, output, where)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("options", [{}, {"resume": True}, {"share_attention": True}])
def test_a_folder_of_the_user_is_left_as_it_is(tiny_bert: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    """Also where it has the name of ours, and is what is to be learned."""
    mine = tmp_path / "all.training"
    mine.mkdir()
    (mine / "a.jsonl").write_text("\n".join(map(json.dumps, rows_of("classification"))))
    with pytest.raises(ConfigError, match=r"it holds a\.jsonl, which no run left; move it, or name another output"):
        train_many({"a": mine / "a.jsonl"}, tmp_path / "all", str(tiny_bert), **options, **QUICK)
    assert [path.name for path in tmp_path.rglob("*")] == ["all.training", "a.jsonl"]


def test_what_resume_takes_for_finished(tiny_bert: Path, tmp_path: Path) -> None:
    """The same rows of all splits, and a folder that is there; a torn mark says nothing."""
    good, odd = {**data_of("classification", 16), "test": rows_of("classification", 8)}, tmp_path / "none.csv"
    options: dict[str, Any] = {**QUICK, "epochs": 1, "resume": True}

    def again(one: dict[str, Any]) -> int:
        results = train_many({"good": one, "odd": odd}, tmp_path / "all", str(tiny_bert), **options)
        assert set(results.failed) == {"odd"}
        assert results["good"].metrics["run"]["test_rows"] == len(one["test"])
        return (tmp_path / "all" / "good" / store.WEIGHTS).stat().st_mtime_ns

    first = again(good)
    assert again(good) == first
    shutil.rmtree(tmp_path / "all" / "good")
    assert (second := again(good)) > first
    fewer = {**good, "test": good["test"][:4]}
    assert (third := again(fewer)) > second
    (tmp_path / "all.training" / "good.id").write_text("")
    assert again(fewer) > third


def test_lanes_take_turns() -> None:
    heard: list[str] = []

    def count(name: str, times: int, ask: Any) -> None:
        for i in range(times):
            heard.append(f"{name}{ask(i)}")

    a, b = Lane[int, int](lambda ask: count("a", 2, ask)), Lane[int, int](lambda ask: count("b", 1, ask))
    assert [a.start(), b.start()] == [0, 0]
    assert [a.answer(10), b.answer(20), a.answer(30)] == [1, None, None]
    assert heard == ["a10", "b20", "a30"]


def test_a_lane_that_fails_or_is_stopped() -> None:
    ended: list[str] = []

    def wait(ask: Any) -> None:
        try:
            ask("x")
        except Stopped:
            ended.append("stopped")
            raise

    def fail(ask: Any) -> None:
        ask("x")
        raise ValueError("broken")

    waiting, failing = Lane[str, int](wait), Lane[str, int](fail)
    assert waiting.start() == failing.start() == "x"
    with pytest.raises(ValueError, match="broken"):
        failing.answer(1)
    waiting.stop()
    assert ended == ["stopped"]
    told = Lane[str, int](wait)
    assert told.start() == "x"
    with pytest.raises(ValueError, match="too long"):
        told.fail(ValueError("too long"))
    assert ended == ["stopped"]
