"""Several tasks that write texts under one attention: the paper's own setting, text to text."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_generate import QUICK, writers  # pyright: ignore[reportUnusedImport]
from test_shared import key_of, losses
from test_train import FOLDER, rows_of
from writers import WRITERS, pairs, tokenizer_of

import attentune
from attentune import AttemptConfig, store
from attentune.backbones import load_backbone
from attentune.card import Backbone, TaskCard
from attentune.errors import UnsupportedError
from attentune.methods.attempt import METHOD
from attentune.model import LanguageModel
from attentune.predict import Job, load_many
from attentune.tasks import load_data
from attentune.tasks.generate import Generation
from attentune.training.many import train_many
from attentune.training.together import Part, share
from attentune.training.train import train

__all__ = ["writers"]
OPTIONS: dict[str, Any] = {
    **{key: value for key, value in QUICK.items() if key != "task"},
    "kind": "generation",
    "epochs": 2,
    "batch_size": 8,
    "max_length": 24,
    "learning_rate": 0.05,
    "length": 3,
    "sources": 2,
    "train_sources": True,
    "attention_learning_rate": 0.02,
}


def turned(count: int) -> list[dict[str, str]]:
    """The rows of `pairs` with the words of the answer from last to first."""
    return [{**row, "target": " ".join(row["target"].split()[::-1])} for row in pairs(count)]


DATA = {"told": pairs(24), "turned": turned(24)}


@pytest.fixture(scope="module", params=WRITERS)
def kind(request: pytest.FixtureRequest) -> str:
    """An architecture that writes."""
    return request.param


@pytest.fixture(scope="module")
def folders(kind: str, writers: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two tasks that were trained together."""
    output = tmp_path_factory.mktemp(kind) / "all"
    results = train_many(DATA, output, str(writers[kind]), share_attention=True, **OPTIONS)
    return {name: result.folder for name, result in results.items()}


def test_every_task_has_a_whole_folder(folders: dict[str, Path]) -> None:
    for folder in folders.values():
        assert {f.name for f in folder.iterdir()} == FOLDER
        metrics = json.loads((folder / store.METRICS).read_text())
        assert metrics["run"]["together"] == list(DATA)
        assert sum(metrics["attention"].values()) == pytest.approx(1, abs=1e-5)
        line = json.loads((folder / store.LOG).read_text().splitlines()[-1])["validation"]
        assert line["loss"] == pytest.approx((line["told/loss"] + line["turned/loss"]) / 2)
    first, second = (key_of(load_file(folder / store.WEIGHTS)) for folder in folders.values())
    for key, value in first.items():
        assert torch.equal(value, second[key]) == (key in METHOD.shared), key


def test_texts_written_together_are_those_written_alone(folders: dict[str, Path]) -> None:
    inputs, tasks = ["anna ben", "cara dan eva", "finn", "eva anna"], ["told", "turned", "turned", "told"]
    mixed = load_many(folders)
    answers = mixed.predict(inputs, tasks)
    weights = mixed.attention(inputs, tasks)
    for text, task, answer, weight in zip(inputs, tasks, answers, weights, strict=True):
        alone = attentune.load(folders[task])
        assert alone.predict([text]) == [answer]
        assert alone.attention([text])[0] == pytest.approx(weight, abs=1e-5)


def test_a_task_alone_is_a_task_too(kind: str, writers: dict[str, Path], tmp_path: Path) -> None:
    where = str(writers[kind])
    results = train_many({"told": DATA["told"]}, tmp_path / "all", where, share_attention=True, **OPTIONS)
    alone = train(DATA["told"], "attempt", tmp_path / "one", where, **OPTIONS)
    mine, theirs = (load_file(folder / store.WEIGHTS) for folder in (results["told"].folder, alone.folder))
    assert {key: value.shape for key, value in mine.items()} == {key: value.shape for key, value in theirs.items()}
    configs = [json.loads((r.folder / store.CONFIG).read_text()) for r in (results["told"], alone)]
    assert configs[0] == configs[1]
    assert results["told"].card.max_length == alone.card.max_length


def test_the_loss_of_a_mixed_batch_is_that_of_each_row_alone(kind: str, writers: dict[str, Path]) -> None:
    torch.manual_seed(0)
    model, tokenizer = LanguageModel(load_backbone(str(writers[kind]), writes=True)), tokenizer_of(kind)
    parts: dict[str, Part] = {}
    for i, (name, given) in enumerate(DATA.items()):
        rows = load_data({"train": given[:6], "validation": given[6:8]}, "generation")
        task = Generation(decoder_only=kind == "gpt2", max_new_tokens=6 - 2 * i)
        model.add_adapter(f"task{i}", AttemptConfig(length=3, sources=2, bottleneck=5, init_weights=False))
        card = TaskCard(name, "attempt", task, rows.columns, Backbone("", ""), 24, "mean")
        parts[name] = Part(f"task{i}", card, {"train": task.encode(tokenizer, rows.train, 24)}, rows.validation)
    adapters = [part.adapter for part in parts.values()]
    share(model, adapters, METHOD.shared)
    model.set_adapter(adapters)
    jobs = [Job(parts[name].features["train"][i], name) for i in range(3) for name in parts]
    mixed = losses(model, parts, tokenizer, jobs)
    trained = [p for p in model.parameters() if p.requires_grad]
    together = torch.autograd.grad(torch.cat(list(mixed.values())).sum(), trained)
    total = [torch.zeros_like(p) for p in trained]
    for name in parts:
        alone = [losses(model, parts, tokenizer, [job])[name] for job in jobs if job.task == name]
        assert torch.allclose(mixed[name], torch.cat(alone), atol=1e-5)
        gradients = torch.autograd.grad(torch.cat(alone).sum(), trained, allow_unused=True)
        total = [t if g is None else t + g for t, g in zip(total, gradients, strict=True)]
    for mine, wanted in zip(together, total, strict=True):
        assert torch.allclose(mine, wanted, atol=1e-5)
        assert wanted.any()


def test_tasks_that_write_and_others_are_trained_apart(writers: dict[str, Path], tmp_path: Path) -> None:
    data = {"told": pairs(12), "tone": rows_of("classification", 12)}
    with pytest.raises(UnsupportedError, match="'told' writes texts and 'tone' does not; train each sort by itself"):
        train_many(data, tmp_path / "all", str(writers["t5"]), share_attention=True)
    assert list(tmp_path.iterdir()) == []
