"""Several tasks under one attention: trained in mixed batches, each folder whole, alone and together."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_sources import library  # noqa: F401  # pyright: ignore[reportUnusedImport]
from test_train import FOLDER, QUICK, rows_of
from torch import Tensor
from transformers import TrainerCallback

import attentune
from attentune import AttemptConfig, HeadConfig, TaskModel, store
from attentune.backbones import load_backbone, load_tokenizer
from attentune.card import Backbone, TaskCard
from attentune.errors import ConfigError, DataError, UnsupportedError
from attentune.method import Frame
from attentune.methods.attempt import METHOD, edit_prompt
from attentune.predict import Job
from attentune.tasks import load_data, task_of
from attentune.training.many import train_many
from attentune.training.recipe import read_recipe
from attentune.training.together import Part, collate_mixed, row_losses, share
from attentune.training.train import train

KINDS = ("classification", "pair", "regression", "tagging")
INPUTS: dict[str, list[Any]] = {
    "classification": ["the film is good", "bad rain"],
    "pair": [["the film is good", "the plot"], ["a", "b"]],
    "regression": ["a good film"],
    "tagging": ["Anna visits London"],
}


def key_of(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.split(".")[-1]: value for key, value in tensors.items()}


def rows_of_all() -> dict[str, Any]:
    """Of each kind; one text is longer than what is read of it."""
    data = {kind: {"train": rows_of(kind, 24), "validation": rows_of(kind, 6)} for kind in KINDS}
    data["regression"]["train"][0]["text"] += " good" * 40
    return data


@pytest.fixture(scope="module")
def folders(tiny_bert: Path, library: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:  # noqa: F811
    """Four tasks of different kinds, trained together over the library."""
    output = tmp_path_factory.mktemp("together") / "all"
    options: dict[str, Any] = {**QUICK, "attention_learning_rate": 0.05, "share_attention": True}
    lines: list[str] = []
    results = train_many(rows_of_all(), output, str(tiny_bert), library=library, report=lines.append, **options)
    assert not output.with_name("all.training").exists()
    assert [line[:9] for line in lines if line.startswith("epoch")] == ["epoch 1.0", "epoch 2.0"]
    cut = "max_length: of 1 of 30 rows only the first 24 tokens are read"
    assert [line for line in lines if "max_length" in line] == [f"regression: {cut}"]
    assert [name for name, result in results.items() if cut in result.notes] == ["regression"]
    return {name: result.folder for name, result in results.items()}


def test_every_task_has_a_whole_folder(folders: dict[str, Path]) -> None:
    for kind, folder in folders.items():
        assert {f.name for f in folder.iterdir()} == FOLDER
        metrics = json.loads((folder / store.METRICS).read_text())
        assert metrics["run"]["together"] == list(KINDS)
        assert list(metrics["attention"]) == ["nli", "stars", "tone", "topic", "target"]
        data = {"validation": rows_of(kind, 6)}
        adapter = attentune.load(folder)
        again = adapter.judge(data, split="validation").scores
        assert again == pytest.approx(metrics["validation"], abs=1e-6)
        line = json.loads((folder / store.LOG).read_text().splitlines()[-1])
        mean = line["validation"].pop("mean")
        assert [key.split("/")[0] for key in line["validation"]] == list(KINDS)
        assert line["validation"].keys() >= {"classification/accuracy", "pair/accuracy"}
        assert mean == pytest.approx(sum(line["validation"].values()) / len(KINDS))


def test_shared_tensors_are_equal_and_the_others_are_not(folders: dict[str, Path]) -> None:
    found = [key_of(load_file(folder / store.WEIGHTS)) for folder in folders.values()]
    for other in found[1:]:
        for key, value in found[0].items():
            if key in METHOD.shared:
                assert torch.equal(value, other[key]), key
        assert not torch.equal(found[0]["target_prompts"], other["target_prompts"])
    assert [len(one["out_bias"]) for one in found] == [2, 3, 1, 3]


def test_a_mixed_batch_answers_as_each_alone(folders: dict[str, Path]) -> None:
    tasks = [kind for kind in KINDS for _ in INPUTS[kind]]
    inputs = [item for kind in KINDS for item in INPUTS[kind]]
    predictor = attentune.predict.load_many(folders)
    mixed = predictor.logits(predictor.jobs(inputs, tasks), batch_size=8)
    for kind in KINDS:
        alone = attentune.load(folders[kind]).predictor
        expected = alone.logits(alone.jobs(INPUTS[kind], [kind] * len(INPUTS[kind])), batch_size=1)
        for z, wanted in zip((m for m, task in zip(mixed, tasks, strict=True) if task == kind), expected, strict=True):
            assert z == pytest.approx(wanted, abs=1e-5)


def parts_of(tiny_bert: Path) -> tuple[TaskModel, dict[str, Part], Any]:
    """A fresh model of three tasks under one attention, and rows for it."""
    torch.manual_seed(0)
    model, tokenizer = TaskModel(load_backbone(str(tiny_bert))), load_tokenizer(str(tiny_bert))
    parts: dict[str, Part] = {}
    for i, kind in enumerate(("classification", "regression", "tagging")):
        rows = load_data({"train": rows_of(kind, 8), "validation": rows_of(kind, 4)})
        task = task_of(rows)
        head: Any = HeadConfig("token" if kind == "tagging" else "sequence", task.num_outputs, "mean")
        model.add_adapter(f"task{i}", AttemptConfig(length=3, sources=2, bottleneck=5, init_weights=False, head=head))
        card = TaskCard(kind, "attempt", task, rows.columns, Backbone("", ""), 24, "mean")
        parts[kind] = Part(f"task{i}", card, {"train": task.encode(tokenizer, rows.train, 24)}, rows.validation)
    adapters = [part.adapter for part in parts.values()]
    share(model, adapters, METHOD.shared)
    model.set_adapter(adapters)
    return model, parts, tokenizer


def losses(model: Any, parts: dict[str, Part], tokenizer: Any, jobs: list[Job]) -> dict[str, Tensor]:
    """The loss of each row of a mixed batch, by task."""
    batch = collate_mixed(parts, jobs, tokenizer)
    found = batch.pop("parts")
    logits = model(**batch).logits
    return {n: row_losses(parts[n].task, logits, batch["attention_mask"], part) for n, part in found.items()}


def test_the_loss_of_a_mixed_batch_is_that_of_each_row_alone(tiny_bert: Path) -> None:
    model, parts, tokenizer = parts_of(tiny_bert)
    jobs = [Job(parts[name].features["train"][i], name) for i in range(3) for name in parts]
    mixed = losses(model, parts, tokenizer, jobs)
    for name in parts:
        alone = [losses(model, parts, tokenizer, [job])[name] for job in jobs if job.task == name]
        assert torch.allclose(mixed[name], torch.cat(alone), atol=1e-5)


def test_gradients_of_every_task_reach_the_shared_attention(tiny_bert: Path) -> None:
    model, parts, tokenizer = parts_of(tiny_bert)
    named = {name: p for name, p in model.named_parameters() if "prompt_attempt" in name and p.requires_grad}
    # Shared tensors are there once, under the first task's name; targets are everyone's own.
    assert {name.split(".")[-2] for name in named if not name.endswith("task0")} == {"target_prompts"}
    total: dict[str, Tensor] = {name: torch.zeros_like(p) for name, p in named.items()}
    for task, part in parts.items():
        model.zero_grad()
        losses(model, parts, tokenizer, [Job(part.features["train"][0], task)])[task].sum().backward()
        for name, p in named.items():
            shared = name.split(".")[-2] != "target_prompts"
            reached = p.grad is not None and bool(p.grad.any())
            assert reached == (shared or name.endswith(part.adapter)), (task, name)
            total[name] += 0 if p.grad is None else p.grad
    model.zero_grad()
    jobs = [Job(part.features["train"][0], task) for task, part in parts.items()]
    torch.cat(list(losses(model, parts, tokenizer, jobs).values())).sum().backward()
    for name, p in named.items():
        assert p.grad is not None
        assert torch.allclose(p.grad, total[name], atol=1e-5), name


def test_it_is_the_papers_shared_attention(tiny_bert: Path) -> None:
    """One adapter with `tasks` target prompts and task ids puts the same prompts in front as tied adapters do."""
    model, parts, _ = parts_of(tiny_bert)
    layer: Any = model.get_input_embeddings().get_submodule("prompt_attempt")
    tied = [layer.tensors(part.adapter) for part in parts.values()]
    x = torch.randn(3, 6, 32)
    cfg = AttemptConfig(length=3, sources=2, bottleneck=5, tasks=3, temperature=layer.configs["task0"].temperature)
    p = {key: value[None] for key, value in tied[0].items()}
    p["target_prompts"] = torch.cat([one["target_prompts"] for one in tied])[None]
    together = edit_prompt(cfg, p, x, x, Frame(None, None, 6, width=3, prompt=3, task_ids=torch.arange(3)))
    for i, one in enumerate(tied):
        single = {key: value[None] for key, value in one.items()}
        alone = edit_prompt(layer.configs[f"task{i}"], single, x, x, Frame(None, None, 6, width=3, prompt=3))
        assert torch.allclose(together[i], alone[i], atol=1e-6)


class Kill(TrainerCallback):
    """Strikes after the first evaluation's checkpoint."""

    def on_save(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        raise KeyboardInterrupt


def test_a_killed_run_goes_on(
    tiny_bert: Path,
    library: Path,  # noqa: F811
    folders: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from attentune.training import shared

    data = rows_of_all()
    options: dict[str, Any] = {**QUICK, "attention_learning_rate": 0.05, "library": library, "share_attention": True}
    build = shared.build_mixed_trainer

    def deadly(*args: Any) -> Any:
        trainer = build(*args)
        trainer.add_callback(Kill())
        return trainer

    monkeypatch.setattr(shared, "build_mixed_trainer", deadly)
    with pytest.raises(KeyboardInterrupt):
        train_many(data, tmp_path / "all", str(tiny_bert), **options)
    checkpoint = next((tmp_path / "all.training").glob("checkpoint-*"))
    assert not any("backbone.encoder" in key for key in load_file(checkpoint / "model.safetensors"))
    monkeypatch.undo()
    results = train_many(data, tmp_path / "all", str(tiny_bert), resume=True, **options)
    for name, folder in folders.items():
        for key, value in load_file(folder / store.WEIGHTS).items():
            assert torch.equal(value, load_file(results[name].folder / store.WEIGHTS)[key]), key


def test_what_cannot_be_trained_together(tiny_bert: Path, tmp_path: Path) -> None:
    rows = rows_of("classification")
    where = str(tiny_bert)
    with pytest.raises(UnsupportedError, match=r"pasta has nothing that tasks could share.*attempt has"):
        train_many({"a": rows}, tmp_path / "all", where, method="pasta", share_attention=True)
    with pytest.raises(ConfigError, match="no task given"):
        train_many({}, tmp_path / "all", where, share_attention=True)
    for name in ("../a", "", ".a", "a/b"):
        with pytest.raises(ConfigError, match="a task's name is that of its folder"):
            train_many({name: rows}, tmp_path / "all", where, share_attention=True)
    with pytest.raises(ConfigError, match="all tasks are learned at once; drop `together`"):
        train_many({"a": rows}, tmp_path / "all", where, share_attention=True, together=2)
    with pytest.raises(ConfigError, match="cache_frozen keeps what no training changes, and attempt trains what"):
        train_many({"a": rows}, tmp_path / "all", where, share_attention=True, cache_frozen=True)
    with pytest.raises(ConfigError, match="the mean of the tasks' main scores chooses the epoch; leave out metric"):
        train_many({"a": rows}, tmp_path / "all", where, share_attention=True, metric="macro_f1")
    assert list(tmp_path.iterdir()) == []


def test_what_is_set_holds_for_every_task(tiny_bert: Path, tmp_path: Path) -> None:
    """Columns that no task would guess, and a class that none is to learn."""
    odd = [{"b": row["text"], "a": "the rain", "mark": row["label"]} for row in rows_of("classification", 12)]
    out = [{"b": "a long river", "a": "the rain", "mark": "none"}] * 4
    data: dict[str, Any] = {"one": [*odd, *out], "two": [*odd[::-1], *out]}
    named: dict[str, Any] = {"text": ["b"], "label": "mark", "out_of_scope": "none"}
    results = train_many(data, tmp_path / "all", str(tiny_bert), share_attention=True, **{**QUICK, **named})
    for result in results.values():
        assert result.card.columns.shown() == "b -> mark"
        assert result.card.task.labels == ("neg", "pos")
        assert result.card.calibration.scope is not None
        saved = read_recipe(result.folder / store.RECIPE).task
        assert (saved.text, saved.label, saved.out_of_scope) == (["b"], "mark", "none")
    numbers: list[dict[str, Any]] = [{"text": "good sun", "label": i % 2} for i in range(12)]
    options: dict[str, Any] = {**QUICK, "share_attention": True, "kind": "regression"}
    results = train_many({"one": numbers, "two": numbers}, tmp_path / "all", str(tiny_bert), **options)
    assert [result.card.task.kind for result in results.values()] == ["regression", "regression"]
    with pytest.raises(DataError, match=r"^two: train row 1, column 'label': wanted a number, found str 'neg'"):
        train_many({"one": numbers, "two": rows_of("classification", 12)}, tmp_path / "b", str(tiny_bert), **options)


def test_a_task_may_have_the_name_of_a_figure(tiny_bert: Path, tmp_path: Path) -> None:
    """None is lost from the log, nor takes the place of the mean that chooses the epoch."""
    data = {name: rows_of("classification", 12, i) for i, name in enumerate(("mean", "runtime"))}
    options: dict[str, Any] = {**QUICK, "epochs": 1, "share_attention": True}
    results = train_many(data, tmp_path / "all", str(tiny_bert), **options)
    for result in results.values():
        (line,) = map(json.loads, (result.folder / store.LOG).read_text().splitlines())
        found = line["validation"]
        assert found.keys() == {"mean/accuracy", "runtime/accuracy", "mean"}
        assert found["mean"] == pytest.approx((found["mean/accuracy"] + found["runtime/accuracy"]) / 2)


def test_few_shots_of_several_kinds(masked_bert: Path, tmp_path: Path) -> None:
    """Words for classes are for those tasks that have classes; all else but the task is the first one's."""
    data = {kind: {"train": rows_of(kind, 24), "validation": rows_of(kind, 6)} for kind in ("regression", "pair")}
    options: dict[str, Any] = {**QUICK, "epochs": 1, "shots": 6, "share_attention": True}
    for names in (("regression", "pair"), ("pair", "regression")):
        results = train_many({name: data[name] for name in names}, tmp_path / names[0], str(masked_bert), **options)
        recipes = [read_recipe(result.folder / store.RECIPE) for result in results.values()]
        assert recipes[0].training == recipes[1].training
        assert {r.task.kind: r.task.template for r in recipes} == {"regression": None, "classification": "auto"}
        assert all(result.metrics["run"]["training_rows"] == 6 for result in results.values())


def test_a_task_alone_is_a_task_too(tiny_bert: Path, tmp_path: Path) -> None:
    """The folders are of the same make as those of `train`."""
    options: dict[str, Any] = {**QUICK, "sources": 2, "train_sources": True}
    results = train_many(
        {"tone": rows_of("classification")}, tmp_path / "all", str(tiny_bert), share_attention=True, **options
    )
    alone = train(rows_of("classification"), "attempt", tmp_path / "one", str(tiny_bert), **options)
    mine, theirs = (load_file(folder / store.WEIGHTS) for folder in (results["tone"].folder, alone.folder))
    assert {key: value.shape for key, value in mine.items()} == {key: value.shape for key, value in theirs.items()}
    configs = [json.loads((r.folder / store.CONFIG).read_text()) for r in (results["tone"], alone)]
    assert configs[0] == configs[1]
