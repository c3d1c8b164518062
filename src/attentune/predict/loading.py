"""Adapter folders -> one backbone with all of them, checked to belong together."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from attentune import quantised, store
from attentune.backbones import fingerprint, load_backbone, load_tokenizer
from attentune.errors import ConfigError, StoreError
from attentune.model import LanguageModel, TaskModel, twin
from attentune.predict.adapter import Adapter
from attentune.predict.predictor import Predictor, check_inputs
from attentune.store import Stored
from attentune.tasks.generate import Generation
from attentune.tasks.inputs import Input
from attentune.tasks.verbalise import Cloze
from attentune.vocabulary import vocabulary_head


def load(
    folder: str | Path,
    backbone: str | None = None,
    device: str | None = None,
    *,
    dtype: torch.dtype | None = None,
    quantise: str | None = None,
    **decoding: int,
) -> Adapter:
    """Load one adapter folder with its backbone; `backbone` names another place to load the same backbone from.

    `dtype` is the backbone's, by default that of its file; with `quantise` its blocks multiply in "int8", on a CPU, or
    keep their weights in 4 bits, "nf4".
    `decoding`: `num_beams`, `max_new_tokens` in the place of those that the task was trained with.

    Raises:
        StoreError: the folder is incomplete, or the backbone is not the one it was trained on.
    """
    stored = _decoded(store.read(folder), decoding)
    predictor = _predictor({stored.card.name: stored}, backbone, device, dtype, quantise)
    return Adapter(predictor, stored.card.name, stored)


def load_many(
    adapters: Mapping[str, str | Path], backbone: str | None = None, device: str | None = None, **decoding: int
) -> Predictor:
    """Load the adapter folders of many tasks, by name, onto one backbone; `decoding` as for `load`."""
    if not adapters:
        raise ConfigError("no adapter given; wanted {task: folder}")
    stored = {name: _decoded(store.read(folder), decoding) for name, folder in adapters.items()}
    return _predictor(stored, backbone, device)


def _decoded(stored: Stored, decoding: Mapping[str, int]) -> Stored:
    task = stored.card.task
    if not decoding or not isinstance(task, Generation):
        return stored
    unknown = ", ".join(set(decoding) - {"num_beams", "max_new_tokens"})
    if unknown:
        raise ConfigError(f"no option {unknown}; texts are written by num_beams and max_new_tokens")
    return replace(stored, card=replace(stored.card, task=replace(task, **decoding)))


def predict_many(
    adapters: Mapping[str, str | Path] | Predictor,
    inputs: Sequence[Input],
    tasks: Sequence[str] | None = None,
    batch_size: int = 32,
    backbone: str | None = None,
    *,
    abstain_at: float | None = None,
    coverage: float | None = None,
) -> list[Any]:
    """Many tasks on one backbone, in mixed batches.

    Without `tasks` every input goes through every task: a list of {task: answer}. With `tasks`, one name a row, each
    row gets its own: a list of answers. `adapters` is {task: folder} or what `load_many` made. `abstain_at` and
    `coverage` are those of `Adapter.predict`.
    """
    trust = {"abstain_at": abstain_at, "coverage": coverage}
    predictor = adapters if isinstance(adapters, Predictor) else load_many(adapters, backbone)
    if tasks is not None:
        return predictor.predict(inputs, tasks, batch_size, **trust)
    check_inputs(inputs)
    names = list(predictor.cards)
    flat = predictor.predict(
        [text for text in inputs for _ in names], [name for _ in inputs for name in names], batch_size, **trust
    )
    width = len(names)
    return [dict(zip(names, flat[i * width : (i + 1) * width], strict=True)) for i in range(len(inputs))]


def load_fitting(
    stored: Mapping[str, Stored], backbone: str | None = None, dtype: torch.dtype | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The backbone and tokenizer of all these adapters, loaded once; in `dtype`, else in that of its file.

    Raises:
        StoreError: the adapters belong to different backbones, or to another than `backbone`.
    """
    ids = {one.card.backbone.id: name for name, one in stored.items()}
    if len(ids) > 1 and backbone is None:
        raise StoreError(f"the adapters belong to different backbones: {', '.join(ids)}; load each by itself")
    name = backbone or next(iter(ids))
    base = load_backbone(name, dtype, writes=any(one.card.task.head == "language" for one in stored.values()))
    found = fingerprint(base)
    for task, one in stored.items():
        store.check_fits(task, one.card, found, name)
    return base, load_tokenizer(name, base)


def _predictor(
    stored: Mapping[str, Stored],
    backbone: str | None,
    device: str | None,
    dtype: torch.dtype | None = None,
    quantise: str | None = None,
) -> Predictor:
    base, tokenizer = load_fitting(stored, backbone, dtype)
    where = quantised.device_for(quantise, device)
    cast("nn.Module", base).to(where)
    if quantise is not None:
        quantised.quantise(base, quantise)
    cards = {task: one.card for task, one in stored.items()}
    write = [card.task.head == "language" for card in cards.values()]
    reader = None
    if not all(write):
        reader = TaskModel(twin(base.base_model) if any(write) else base, _vocabulary(stored, backbone, base)).to(where)
    writer = LanguageModel(base) if any(write) else None
    for i, (one, writes) in enumerate(zip(stored.values(), write, strict=True)):
        host = writer if writes else reader
        assert host is not None
        host.load_adapter(f"task{i}", str(one.folder))
    model = reader or writer
    assert model is not None
    return Predictor(model, tokenizer, cards, writer)


def _vocabulary(stored: Mapping[str, Stored], backbone: str | None, base: PreTrainedModel) -> nn.Module | None:
    """The masked-LM head of the backbone, where a task has words for its classes."""
    asks = [task for task, one in stored.items() if isinstance(one.card.task, Cloze)]
    if not asks:
        return None
    name = backbone or stored[asks[0]].card.backbone.id
    found = vocabulary_head(name, base)
    if found is None:
        raise StoreError(f"adapter {asks[0]!r} has words for its classes, and {name} holds no masked-LM head")
    return found
