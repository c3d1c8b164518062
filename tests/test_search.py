"""Search: budgets, costs known before training, trials that are given up, resume, and the folder that it leaves."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import optuna
import pytest
import torch
from optuna.trial import TrialState, create_trial
from test_cli import run, write_rows
from test_few_shot import replace_weights
from test_train import FOLDER, QUICK, rows_of
from writers import save_writer

import attentune
from attentune.backbones import load_backbone, load_tokenizer
from attentune.errors import ConfigError, UnsupportedError
from attentune.methods import METHODS
from attentune.quantised import on_cpu_only
from attentune.search import space
from attentune.search.budget import parse_latency, parse_size
from attentune.search.cost import Meter, rows_to_time
from attentune.search.report import importance
from attentune.search.search import search
from attentune.search.trial import Job, Outcome, study_of
from attentune.search.trial import run as run_trial
from attentune.tasks import load_data
from attentune.tasks.classify import Classification
from attentune.training.recipe import read_recipe, recipe_of, shipped_recipe
from attentune.training.train import train

DATA = {"train": rows_of("classification", 32), "validation": rows_of("classification", 16, seed=1)}
GOOD_BAD = {"neg": "bad", "pos": "good"}
FIXED: dict[str, Any] = {"epochs": 2, "max_length": 24, "batch_size": 8, "patience": 0}


@pytest.mark.parametrize(
    ("text", "size"),
    [("64KB", 64_000), ("64 kb", 64_000), ("70KiB", 71_680), ("0.5MB", 500_000), ("900", 900), (900, 900), ("9B", 9)],
)
def test_sizes(text: str | int, size: int) -> None:
    assert parse_size(text) == size


def test_wrong_budgets(tiny_bert: Path, tmp_path: Path) -> None:
    for size in ("64 lb", "much", "-3KB", "0KB", ""):
        with pytest.raises(ConfigError, match=r"a budget is a size such as 64KB, 70KiB or 0\.5MB, found"):
            parse_size(size)
    assert (parse_latency("1.1x"), parse_latency(1.5), parse_latency("2")) == (1.1, 1.5, 2.0)
    for factor in ("0.9x", "fast", "10ms"):
        with pytest.raises(ConfigError, match=r"a latency is a factor of at least 1 such as 1\.1x, found"):
            parse_latency(factor)
    with pytest.raises(ConfigError, match="minutes above 0 and at least one trial, found 0 and None"):
        search(DATA, tmp_path / "a", str(tiny_bert), minutes=0)
    with pytest.raises(ConfigError, match="minutes above 0 and at least one trial, found nan"):
        search(DATA, tmp_path / "a", str(tiny_bert), minutes=float("nan"))
    with pytest.raises(ConfigError, match="no method 'lora'; the methods are"):
        search(DATA, tmp_path / "a", str(tiny_bert), methods=["lora"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("method", METHODS)
def test_bytes_are_those_of_the_file(method: str, tiny_bert: Path, tmp_path: Path) -> None:
    base = load_backbone(str(tiny_bert))
    meter = Meter(base, load_tokenizer(str(tiny_bert), base), Classification(("neg", "pos")))
    before = {name: p.clone() for name, p in base.named_parameters()}
    recipe = shipped_recipe("classification", method)
    found = meter.cost(recipe, rows_to_time(DATA["validation"]), 24)
    options: dict[str, Any] = {**QUICK, "epochs": 1}
    made = train(DATA, method, tmp_path / "a", str(tiny_bert), **options)
    assert found.size == (made.folder / "adapter_model.safetensors").stat().st_size
    assert found.latency is not None
    assert found.latency > 0
    # The backbone is as it was.
    assert {name: p.data_ptr() for name, p in base.named_parameters()}.keys() == before.keys()
    assert all(p.equal(before[name]) for name, p in base.named_parameters())


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_latency_is_beside_what_adapters_stand_on(kind: str, tmp_path: Path) -> None:
    """Of an encoder-decoder the encoder alone, on both sides."""
    where = str(save_writer(kind, tmp_path))
    base, written = load_backbone(where), list[Any]()
    cast("Any", base).get_decoder().register_forward_pre_hook(lambda *given: written.append(given))
    meter = Meter(base, load_tokenizer(where, base), Classification(("neg", "pos")))
    found = meter.cost(shipped_recipe("classification", "kernel_mix"), [{"text": "anna went with ben"}], 24)
    assert found.latency is not None
    assert found.latency > 0
    assert not written


def test_the_space_of_every_method_can_be_built() -> None:
    for method in METHODS:
        options = space.choices(method)
        assert all(len(values) > 1 for values in options.values())
        for key, values in options.items():
            for value in values:
                METHODS[method].config(**{key: value})
    for name, wanted in {"all": None, "upper half": [6, 7, 8, 9, 10, 11], "last": [11]}.items():
        assert space.blocks(name, 12) == wanted
    study = optuna.create_study()
    fixed = {"task.pooling": "cls", "method.width": 2, "training.learning_rate": 0.5}
    found = space.suggest(study.ask(), ["tiny_attention"], "classification", False, 12, fixed, True)
    assert (found.task.pooling, found.options["width"], found.training.learning_rate) == ("cls", 2, 0.5)
    assert not any("learning_rate" in key for key in study.trials[-1].params if key != "head_learning_rate")


def test_the_search_begins_with_the_recipes() -> None:
    for start in space.starts(list(METHODS), "classification", False):
        study = optuna.create_study()
        study.enqueue_trial(start)
        found = space.suggest(study.ask(), list(METHODS), "classification", False, 4, {}, True)
        recipe = shipped_recipe("classification", start["method"])
        assert found.method == start["method"]
        assert found.training.learning_rate == pytest.approx(recipe.training.learning_rate)
        assert found.training.head_learning_rate == pytest.approx(recipe.training.head_learning_rate)
        assert found.task.pooling == recipe.task.pooling
        assert "layers_to_transform" not in found.options


def test_a_trial_that_falls_behind_is_given_up(tiny_bert: Path) -> None:
    data = load_data(DATA)
    scores = {1: 2.0, 2: 2.0, 3: 2.0}  # no accuracy is as good
    params: dict[str, Any] = {"value": 2.0, "intermediate_values": scores}
    others = tuple(create_trial(state=TrialState.COMPLETE, **params) for _ in range(4))
    recipe = recipe_of({"method": {"name": "pasta"}}).override({**FIXED, "epochs": 5})
    behind = run_trial(Job(9, recipe, data, str(tiny_bert), "a", True, others, None))
    assert (behind.why, len(behind.scores), behind.files) == ("behind", 2, {})
    late = run_trial(Job(9, recipe, data, str(tiny_bert), "a", True, (), 0.0))
    assert (late.why, len(late.scores)) == ("time", 1)
    whole = run_trial(Job(9, recipe.override({"epochs": 1}), data, str(tiny_bert), "a", False, (), None))
    assert whole.why is None
    assert set(whole.files) == FOLDER
    assert study_of(Job(9, recipe, data, "", "a", False, others, None)).direction.name == "MINIMIZE"


def test_search_and_resume(tiny_bert: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    options: dict[str, Any] = {"methods": ["pasta", "kernel_mix"], "budget": "4KB", "latency": "50x", **FIXED}
    found = search(DATA, tmp_path / "a", str(tiny_bert), trials=2, report=lines.append, **options)
    assert len([line for line in lines if line.startswith("trial")]) == 2
    assert {file.name for file in found.folder.iterdir()} == FOLDER | {"search.json", "search.html"}
    summary = json.loads((found.folder / "search.json").read_text())
    assert summary == found.metrics["search"]
    assert summary["budget"] == {"size": 4000, "latency": 50.0}
    assert (found.folder / "adapter_model.safetensors").stat().st_size == summary["best"]["bytes"] <= 4000
    scores = [trial["score"] for trial in summary["trials"]]
    assert summary["best"]["score"] == max(score for score in scores if score is not None)
    assert found.metrics["validation"]["accuracy"] == pytest.approx(summary["best"]["score"])
    page = (found.folder / "search.html").read_text()
    assert "<svg" in page
    assert f"trial {summary['best']['number']}" in page
    recipe = read_recipe(found.folder / "recipe.toml")
    assert recipe.method == summary["best"]["method"]
    assert recipe.training.epochs == 2
    assert attentune.load(found.folder).predict(["the film good"])[0]["label"] in ("neg", "pos")
    # More of the same search: what is finished is not tried again.
    again = search(DATA, tmp_path / "a", str(tiny_bert), trials=3, resume=True, report=lines.append, **options)
    assert lines.count("a holds an adapter already; the new one takes its place when it is done") == 1
    numbers = [trial["number"] for trial in again.metrics["search"]["trials"]]
    assert numbers[:2] == [trial["number"] for trial in summary["trials"]]
    assert len(numbers) == 3
    other: dict[str, Any] = {**options, "budget": "5KB"}
    with pytest.raises(ConfigError, match="holds a search with other data, weights or wishes"):
        search(DATA, tmp_path / "a", str(tiny_bert), trials=3, resume=True, **other)


def test_classes_as_words_are_weighed_as_they_are_trained(masked_bert: Path, tmp_path: Path) -> None:
    """Without a linear head, and so without a pooling to choose."""
    data = {name: [{**row, "label": GOOD_BAD[row["label"]]} for row in rows] for name, rows in DATA.items()}
    lines: list[str] = []
    options: dict[str, Any] = {**FIXED, "epochs": 1, "methods": ["pasta"], "template": "auto", "trials": 1}
    found = search(data, tmp_path / "a", str(masked_bert), report=lines.append, **options)
    best = json.loads((found.folder / "search.json").read_text())["best"]
    assert best["bytes"] == (found.folder / "adapter_model.safetensors").stat().st_size
    assert "pooling" not in best["settings"]
    assert "template: '{text} It was {mask}.' with bad = bad, good = good" in lines


def test_a_search_of_other_weights_is_not_gone_on_with(tiny_bert: Path, tmp_path: Path) -> None:
    """Of the same name, in the same folder."""
    where = shutil.copytree(tiny_bert, tmp_path / "bert")
    options: dict[str, Any] = {**FIXED, "epochs": 1, "methods": ["pasta"], "trials": 1}
    search(DATA, tmp_path / "a", str(where), **options)
    search(DATA, tmp_path / "a", str(where), resume=True, **options)
    lines: list[str] = []
    search(DATA, tmp_path / "a", str(where), report=lines.append, **options)
    assert "a.search holds trials of this search; it begins anew, and --resume would go on with them" in lines
    replace_weights(where)
    with pytest.raises(ConfigError, match="holds a search with other data, weights or wishes; start again without"):
        search(DATA, tmp_path / "a", str(where), resume=True, **options)


@pytest.mark.parametrize(("fixed", "expected"), [({}, "meta"), ({"quantise": "int8"}, "cpu")])
def test_latency_is_measured_where_training_runs(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fixed: dict[str, Any], expected: str
) -> None:
    """There is no GPU here, so another device stands for it."""
    places: list[str] = []

    def measured(self: Meter, *given: Any) -> float:
        places.append(self.base.device.type)
        return 1.0

    monkeypatch.setattr("attentune.search.search.device_for", lambda how: "cpu" if on_cpu_only(how) else "meta")
    monkeypatch.setattr(Meter, "_latency", measured)
    monkeypatch.setattr(Meter, "_size", lambda self, recipe: 100)
    options: dict[str, Any] = {**FIXED, "epochs": 1, "methods": ["pasta"], "trials": 1, **fixed}
    search(DATA, tmp_path / "a", str(tiny_bert), latency="2x", **options)
    assert set(places) == {expected}
    search(DATA, tmp_path / "b", str(tiny_bert), **options)
    assert set(places) == {expected}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("method", METHODS)
def test_a_gpu_has_latencies_too(method: str, tiny_bert: Path) -> None:
    base, plain = (load_backbone(str(tiny_bert)) for _ in range(2))
    tokenizer, task = load_tokenizer(str(tiny_bert), base), Classification(("neg", "pos"))
    recipe, rows = shipped_recipe("classification", method), rows_to_time(DATA["validation"])
    found = Meter(cast("Any", base).to("cuda"), tokenizer, task).cost(recipe, rows, 24)
    assert found.size == Meter(plain, tokenizer, task).cost(recipe).size
    assert found.latency is not None
    assert found.latency > 0
    assert base.device.type == "cuda"


def test_a_trial_that_fails_does_not_keep_the_others(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_one_that_diverges(job: Job) -> Outcome:
        return run_trial(replace(job, recipe=job.recipe.override({"learning_rate": 1e30})) if job.number == 0 else job)

    monkeypatch.setattr("attentune.search.search.run", with_one_that_diverges)
    lines: list[str] = []
    options: dict[str, Any] = {"methods": ["pasta", "kernel_mix"], **FIXED}
    found = search(DATA, tmp_path / "a", str(tiny_bert), trials=2, report=lines.append, **options)
    assert any(line.startswith("trial 0: pasta, failed: training diverged") for line in lines)
    first, second = found.metrics["search"]["trials"]
    assert first["failed"].startswith("training diverged")
    assert (second["failed"], found.metrics["search"]["best"]["number"]) == (None, 1)
    assert "training diverged" in (found.folder / "search.html").read_text()


def test_all_trials_fail(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("attentune.search.search.FAILURES", 2)
    data = write_rows(tmp_path / "rows.jsonl", DATA["train"])
    fixed = [part for key, value in FIXED.items() for part in ("--set", f"{key}={value}")]
    wild = ("--method", "pasta", "--backbone", tiny_bert, "--set", "learning_rate=1e30", *fixed)
    assert run("search", data, "-o", tmp_path / "a", *wild) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.endswith("is probably too high")
    assert "no trial was finished and 2 failed, the last one of this: training diverged" in told
    assert not (tmp_path / "a").exists()


def test_nothing_fits(tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attentune.search.search.REFUSALS", 6)
    with pytest.raises(ConfigError, match=r"nothing fits into 100 bytes; the smallest of 6 proposals has [\d,]+ bytes"):
        search(DATA, tmp_path / "a", str(tiny_bert), methods=["pasta"], budget=100, **FIXED)
    assert not (tmp_path / "a").exists()


def test_generation_has_no_single_pass(tmp_path: Path, tiny_bert: Path) -> None:
    rows = [{"source": "a", "target": "b"}] * 8
    with pytest.raises(UnsupportedError, match="a latency is that of one forward pass, and generation takes many"):
        search(rows, tmp_path / "a", str(tiny_bert), task="generation", latency="1.1x", methods=["kernel_mix"])


def test_importance_needs_trials_that_differ() -> None:
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))
    assert importance(study) == {}
    for _ in range(60):
        trial = study.ask()
        x, _ = (trial.suggest_float(name, 0, 1) for name in "xy")
        study.tell(trial, x)
    found = importance(study)
    assert found["x"] > found["y"]
    assert sum(found.values()) == pytest.approx(1, abs=1e-3)


@pytest.mark.slow
def test_command_over_two_processes(tiny_bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_rows(tmp_path / "rows.jsonl", DATA["train"])
    fixed = [part for key, value in FIXED.items() for part in ("--set", f"{key}={value}")]
    settings = ("--budget", "64KB", "--minutes", 5, "--method", "pasta", "--backbone", tiny_bert, *fixed)
    assert run("search", data, "-o", tmp_path / "a", "--trials", 3, "--workers", 2, "--json", *settings) == 0
    printed = json.loads(capsys.readouterr().out)
    assert len(printed["search"]["trials"]) == 3
    assert run("search", data, "-o", tmp_path / "b", "--trials", 1, *settings) == 0
    shown = capsys.readouterr()
    assert re.search(r"trial +method +bytes +accuracy", shown.out)
    assert run("search", data, "-o", tmp_path / "c", "--budget", "lots", *settings[2:]) == 2
    assert "a budget is a size such as 64KB" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own threads and sockets, at its start and end
def test_a_ray_cluster_works_on_one_study(tiny_bert: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    given: dict[str, Any] = {"methods": ["pasta"], "trials": 3, "minutes": 5, **FIXED}
    found = search(DATA, tmp_path / "a", str(tiny_bert), **given, workers=2, ray_address="local")
    assert len(found.metrics["search"]["trials"]) == 3
    assert attentune.load(found.folder).predict([DATA["train"][0]["text"]])
