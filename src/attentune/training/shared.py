"""Many tasks, one attention: data of each in, an adapter folder of each out, trained in mixed batches.

A method says which of its tensors tasks can have in common (`Method.shared`; of ATTEMPT the attention and the source
prompts). Each task keeps the rest, its own prompt and head, to itself. Every folder is whole: it works alone, and
beside the others in a mixed batch, with the same answers.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from attentune import store
from attentune.card import Backbone, TaskCard
from attentune.confidence import check_scope
from attentune.errors import ConfigError, DataError, UnsupportedError
from attentune.methods import METHODS
from attentune.model import Adapted, LanguageModel, TaskModel
from attentune.tasks import Data, Task
from attentune.tasks.sources import Source
from attentune.training import trackers
from attentune.training.adapted import check_finite, config_of, longest
from attentune.training.baseline import baseline
from attentune.training.checkpoints import Checkpoints, every_row
from attentune.training.choice import backbone_of, choose, drawn, learned_task, phrased
from attentune.training.frozen import Kept, freeze
from attentune.training.ground import ground_of
from attentune.training.loop import arguments
from attentune.training.recipe import Recipe
from attentune.training.sources.mixture import mean_attention, put_sources, take_sources
from attentune.training.together import MixedTrainer, OneOf, Part, build_mixed_trainer, epoch_score, share
from attentune.training.train import (
    Report,
    Result,
    certified,
    counted,
    cut_off,
    encode_splits,
    measured,
    told,
)
from attentune.vocabulary import VocabularyHead


@dataclass(frozen=True)
class Chosen:
    """What one of the tasks learns, by which recipe, and where it will lie."""

    rows: Data
    recipe: Recipe
    target: Path


def train_shared(
    data: Mapping[str, Source | Data],
    output: str | Path = "adapters",
    backbone: str | None = None,
    recipe: str | Path | Recipe | None = None,
    *,
    method: str | None = None,
    library: str | Path | None = None,
    resume: bool = False,
    report: Report = lambda line: None,
    **overrides: Any,
) -> dict[str, Result]:
    """Train several tasks under one shared attention, `{name: data}`, and write `output/name` for each.

    Method, options and training are those of the recipe given, else of the package's for the first task's kind. What is
    learned from which columns is found for each task as `train` does: `text`, `label` or `out_of_scope` hold for all of
    them. The epoch with the best mean of main scores is kept; of tasks that write texts, the one with the least mean of
    losses.

    Raises:
        ConfigError: another `metric` is to choose the epoch, or frozen blocks are to be kept below an edited one.
        UnsupportedError: the method shares nothing between tasks, or some of them write texts and others do not.
        AttentuneError: else as `train` does.
    """
    chosen = _choose(data, Path(output), method, recipe, overrides, library)
    first = next(iter(chosen.values())).recipe
    backbone, first = backbone_of(first, backbone)
    for name, one in chosen.items():
        store.tell_replaced(one.target, report)
        for note in one.rows.notes:
            report(f"{name}: {note}")
    set_seed(first.training.seed)
    writes = _write_texts(chosen)
    ground = ground_of(backbone, writes, first.training)
    base, tokenizer, origin = ground.base, ground.tokenizer, ground.origin
    sources = take_sources(first, library, origin)
    learned, vocabulary, notes = _learned(chosen, backbone, base, tokenizer)
    for note in notes.values():
        report(note)
    model = LanguageModel(base) if writes else TaskModel(base, vocabulary)
    _adapt(model, tokenizer, learned, chosen, sources)
    parts = _parts(model, learned, chosen, origin, tokenizer)
    cut = {name: cut_off(part.features, part.card.max_length) for name, part in parts.items()}
    for name, line in cut.items():
        if line:
            report(f"{name}: {line}")
    checkpoints = Checkpoints(
        Path(output).expanduser().absolute(),
        identity=[
            origin.fingerprint,
            {name: [one.recipe.to_toml(), every_row(one.rows)] for name, one in chosen.items()},
        ],
    )
    if first.training.cache_frozen:
        freeze(model, Kept(checkpoints.folder / "frozen", ground.room), next(iter(parts.values())).adapter)
    begin = time.perf_counter()
    trainer = build_mixed_trainer(
        model,
        parts,
        tokenizer,
        arguments(checkpoints.folder, first.training, epoch_score(parts.values()), Path(output).name),
        first.training,
        report,
        METHODS[first.method].attention,
    )
    trackers.attach(trainer, Path(output))
    done = checkpoints.train(trainer, resume)
    check_finite((p for p in model.parameters() if p.requires_grad), first.training)
    results: dict[str, Result] = {}
    if trainer.is_world_process_zero():
        run = {"steps": done.global_step, "seconds": round(time.perf_counter() - begin, 1), "together": list(parts)}
        log = (checkpoints.folder / store.LOG).read_text(encoding="utf-8")
        for name, one in chosen.items():
            told_before = (*one.rows.notes, *filter(None, (notes.get(name), cut[name])))
            results[name] = _write(trainer, name, one, told_before, run, log, report)
        checkpoints.remove()
    trackers.detach(trainer)
    trainer.accelerator.wait_for_everyone()
    return results


def _choose(
    data: Mapping[str, Source | Data],
    output: Path,
    method: str | None,
    recipe: str | Path | Recipe | None,
    overrides: Mapping[str, Any],
    library: str | Path | None,
) -> dict[str, Chosen]:
    """Rows and recipe of every task: its own as `train` would have it, with the first one's method and training."""
    chosen: dict[str, Chosen] = {}
    first: Recipe | None = None
    for name, source in data.items():
        target = store.place_of(output, name)
        try:
            rows, own = choose(source, method or (None if recipe else "attempt"), recipe, overrides, library)
            first = first or own
            _check_shares(first)
            rows = drawn(rows, own.task.shots, first.training.seed)
        except DataError as error:
            raise DataError(f"{name}: {error}") from error
        own = replace(first, task=replace(own.task, kind=rows.kind))
        chosen[name] = Chosen(rows, own, target)
    return chosen


def _write_texts(chosen: Mapping[str, Chosen]) -> bool:
    """Whether all tasks write texts, with the backbone's own head; else none does, and each has its own."""
    writes = {name: one.rows.kind == "generation" for name, one in chosen.items()}
    if len(set(writes.values())) > 1:
        writing = next(name for name, one in writes.items() if one)
        other = next(name for name, one in writes.items() if not one)
        raise UnsupportedError(f"{writing!r} writes texts and {other!r} does not; train each sort by itself")
    return any(writes.values())


def _check_shares(recipe: Recipe) -> None:
    if not METHODS[recipe.method].shared:
        able = ", ".join(name for name, one in METHODS.items() if one.shared)
        raise UnsupportedError(f"{recipe.method} has nothing that tasks could share, train each by itself; {able} has")
    if recipe.task.metric is not None:
        raise ConfigError("with one attention the mean of the tasks' main scores chooses the epoch; leave out metric")


def _learned(
    chosen: Mapping[str, Chosen], backbone: str, base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> tuple[dict[str, Task], VocabularyHead | None, dict[str, str]]:
    """The task of each, the head that scores words where one needs it, and what is to be told of each."""
    learned: dict[str, Task] = {}
    notes: dict[str, str] = {}
    vocabulary: VocabularyHead | None = None
    for name, one in chosen.items():
        made = learned_task(one.rows, one.recipe.task, base)
        learned[name], head, note = phrased(made, one.recipe.task, backbone, base, tokenizer)
        check_scope(learned[name], one.recipe.task.false_alarms)
        vocabulary = vocabulary or head
        if note:
            notes[name] = f"{name}: {note}"
    return learned, vocabulary, notes


def _adapt(
    model: Adapted,
    tokenizer: PreTrainedTokenizerBase,
    learned: Mapping[str, Task],
    chosen: Mapping[str, Chosen],
    sources: Tensor | None,
) -> None:
    """Freeze the backbone and give each task an adapter, shared tensors being one and the same."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    recipes = [one.recipe for one in chosen.values()]
    adapters = [f"task{i}" for i in range(len(learned))]
    for adapter, task, recipe in zip(adapters, learned.values(), recipes, strict=True):
        model.add_adapter(adapter, config_of(tokenizer, task, recipe))
        if sources is not None:
            put_sources(model, adapter, sources, paper=recipe.options.get("init_weights") == "paper")
    share(model, adapters, METHODS[recipes[0].method].shared)
    model.set_adapter(adapters)


def _parts(
    model: Adapted,
    learned: Mapping[str, Task],
    chosen: Mapping[str, Chosen],
    origin: Backbone,
    tokenizer: PreTrainedTokenizerBase,
) -> dict[str, Part]:
    parts: dict[str, Part] = {}
    for i, (name, task) in enumerate(learned.items()):
        rows, recipe = chosen[name].rows, chosen[name].recipe
        limit = longest(cast("Any", model).peft_config[f"task{i}"], model.config, task, recipe.task, tokenizer)
        card = TaskCard(name, recipe.method, task, rows.columns, origin, limit, recipe.task.pooling)
        parts[name] = Part(f"task{i}", card, encode_splits(task, tokenizer, rows, limit), rows.validation)
    return parts


def _write(
    trainer: MixedTrainer,
    name: str,
    one: Chosen,
    notes: tuple[str, ...],
    run: Mapping[str, Any],
    log: str,
    report: Report,
) -> Result:
    """Judge one task with what was learned, and write its folder."""
    part, rows, model = trainer.parts[name], one.rows, trainer.predictor.model
    assert isinstance(model, Adapted)
    logits = {split: trainer.logits(name, split) for split in part.features if split != "train"}
    task, calibration, judged = certified(part.task, rows, part.features, logits, one.recipe.task)
    report(f"{name}: {told(calibration, judged)}")
    card = replace(part.card, task=task, calibration=calibration)
    batch = trainer.args.eval_batch_size
    tokenizer = trainer.predictor.tokenizer
    metrics = {
        **measured(task, judged),
        "baseline": baseline(rows.kind, rows.train, rows.test or rows.validation, rows.labels),
        "run": {
            **counted(rows),
            **run,
            "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        },
        **mean_attention(model, part.adapter, tokenizer, task, part.features["validation"], batch),
    }
    store.write(one.target, OneOf(model, part.adapter, card.backbone.id), card, one.recipe.to_toml(), metrics, log)
    return Result(one.target, card, metrics, notes)
