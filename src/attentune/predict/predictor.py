"""Texts -> tokens -> logits -> calibrated probabilities -> answers: one backbone, any number of tasks, mixed batches.

Tasks that write have texts in the place of logits; they share the backbone's tensors with the others. The same few
functions serve validation while training (`logits_by_row`), one loaded adapter (`load`) and many (`load_many`,
`predict_many`). Batches are sorted by length, answers come back in the order of the inputs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from attentune import quantised, store
from attentune.backbones import fingerprint, load_backbone, load_tokenizer
from attentune.batches import in_batches, joined, logits_by_sequence
from attentune.card import TaskCard
from attentune.confidence import Judgement, Labelled, answers, check_wishes, judge
from attentune.errors import ConfigError, DataError, StoreError, UnsupportedError
from attentune.evaluation.metrics import Scores
from attentune.method import METHODS
from attentune.model import LanguageModel, TaskModel, twin
from attentune.store import Stored
from attentune.tasks import Answer, Features, Task
from attentune.tasks.data import load_rows
from attentune.tasks.generate import Generation
from attentune.tasks.inputs import Input, as_row, unlabelled
from attentune.tasks.rows import check_known
from attentune.tasks.sources import Source
from attentune.tasks.task import Inputs, Logits, pad_inputs
from attentune.tasks.verbalise import Cloze
from attentune.tuner import memo
from attentune.vocabulary import vocabulary_head
from attentune.writing import write


@dataclass(frozen=True)
class Job:
    """One row: what goes in, and by which task it is answered."""

    features: Features
    task: str


class Predictor:
    """One frozen backbone with the adapters of any number of tasks; `writer` has those of the tasks that write."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        cards: Mapping[str, TaskCard],
        writer: LanguageModel | None = None,
    ) -> None:
        self.model = model.eval()
        self.writer = None if writer is None else writer.eval()
        self.tokenizer = tokenizer
        self.cards = dict(cards)
        self._names = {task: f"task{i}" for i, task in enumerate(self.cards)}

    def predict(
        self,
        inputs: Sequence[Input],
        tasks: Sequence[str],
        batch_size: int = 32,
        *,
        abstain_at: float | None = None,
        coverage: float | None = None,
    ) -> list[Answer]:
        """One answer a row; `tasks` names the task of each. Rows of different tasks and methods share batches.

        `abstain_at` and `coverage` are those of `Adapter.predict`; every task of the inputs must be able to keep them.
        """
        ready = self.jobs(inputs, tasks)
        for task in dict.fromkeys(tasks):
            check_wishes(self.card(task).task, self.cards[task].calibration, abstain_at, coverage)
        found: dict[int, Answer] = {}
        logits = self.logits(ready, batch_size)
        for task in dict.fromkeys(tasks):
            at, card = [i for i, name in enumerate(tasks) if name == task], self.cards[task]
            z, features = [logits[i] for i in at], [ready[i].features for i in at]
            found |= zip(at, answers(card.task, card.calibration, z, features, abstain_at, coverage), strict=True)
        return [found[i] for i in range(len(ready))]

    def attention(self, inputs: Sequence[Input], tasks: Sequence[str], batch_size: int = 32) -> list[dict[str, float]]:
        """The weight of every prompt that an adapter mixes for each input, by name; they sum to 1.

        Raises:
            UnsupportedError: a task's adapter mixes no prompts.
        """
        names = {task: self._mixed(task) for task in dict.fromkeys(tasks)}
        jobs = self.jobs(inputs, tasks)
        found: dict[int, dict[str, float]] = {}
        for task, columns in names.items():
            at = [i for i, job in enumerate(jobs) if job.task == task]
            features, host = [jobs[i].features for i in at], self._host(task)
            weights = prompt_weights(
                host, self.tokenizer, self.cards[task].task, features, batch_size, self._names[task]
            )
            found |= {i: dict(zip(columns, map(float, w), strict=True)) for i, w in zip(at, weights, strict=True)}
        return [found[i] for i in range(len(jobs))]

    def _mixed(self, task: str) -> tuple[str, ...]:
        card = self.card(task)
        names = METHODS[card.method].mixes(self._host(task).peft_config[self._names[task]])
        if not names:
            raise mixes_nothing(task, card)
        return names

    def _host(self, task: str) -> Any:
        """The model that holds the task's adapter."""
        return self.model if self.card(task).task.head != "language" else self.writer

    def jobs(self, inputs: Sequence[Input], tasks: Sequence[str]) -> list[Job]:
        """Inputs of any allowed form -> rows of a batch."""
        _check_inputs(inputs)
        if len(tasks) != len(inputs):
            raise DataError(f"{len(inputs)} inputs and {len(tasks)} tasks; one task for each input is needed")
        jobs: list[Job | None] = [None] * len(inputs)
        for task in dict.fromkeys(tasks):
            at = [i for i, name in enumerate(tasks) if name == task]
            card = self.card(task)
            rows = [as_row(inputs[i], card, f"input {i + 1}") for i in at]
            for i, features in zip(at, card.task.encode(self.tokenizer, rows, card.max_length), strict=True):
                jobs[i] = Job(features, task)
        return cast("list[Job]", jobs)

    def card(self, task: str) -> TaskCard:
        """The card of a task, or an error that names the loaded ones."""
        if task not in self.cards:
            raise ConfigError(f"no task {task!r}; loaded are {', '.join(self.cards)}")
        return self.cards[task]

    def logits(self, jobs: Sequence[Job], batch_size: int) -> list[Logits]:
        """Run the jobs: the logits of each, [C], or [L,C] for a task on tokens or on several sequences.

        A batch is of `batch_size` sequences: one row with many is spread over batches, and its neighbours share them.
        """
        pieces = [(sequence, job.task) for job in jobs for sequence in job.features.sequences]
        logits = iter(in_batches(pieces, lambda piece: len(piece[0]["input_ids"]), self._run, batch_size))
        return [joined(list(islice(logits, len(job.features.sequences))), self.cards[job.task].task) for job in jobs]

    def _run(self, pieces: Sequence[tuple[Inputs, str]]) -> list[Any]:
        """Logits of each sequence, or the text that is written from it: one batch for each way of decoding."""
        ways = [_way(self.cards[task].task) for _, task in pieces]
        found: dict[int, Any] = {}
        for way in dict.fromkeys(ways):
            at = [i for i, other in enumerate(ways) if other == way]
            run = self._classify if way is None else self._write
            found.update(zip(at, run([pieces[i] for i in at]), strict=True))
        return [found[i] for i in range(len(pieces))]

    def _classify(self, pieces: Sequence[tuple[Inputs, str]]) -> list[Logits]:
        device = next(self.model.parameters()).device
        sequences = [sequence for sequence, _ in pieces]
        inputs = {k: v.to(device) for k, v in pad_inputs(sequences, self.tokenizer).items()}
        names = [self._names[task] for _, task in pieces]
        with torch.inference_mode():
            logits: Tensor = self.model(**inputs, adapter_names=names).logits
        tasks = [self.cards[task].task for _, task in pieces]
        return logits_by_sequence(logits.float().cpu().numpy(), sequences, tasks)

    def _write(self, pieces: Sequence[tuple[Inputs, str]]) -> list[str]:
        assert self.writer is not None
        task = cast("Generation", self.cards[pieces[0][1]].task)
        prompts = [sequence["input_ids"] for sequence, _ in pieces]
        return write(self.writer, self.tokenizer, task, prompts, [self._names[name] for _, name in pieces])


def _way(task: Task) -> tuple[int, int] | None:
    """Tasks that write share a batch when they decode alike."""
    return (task.num_beams, task.max_new_tokens) if isinstance(task, Generation) else None


class Adapter:
    """One task on its backbone."""

    def __init__(self, predictor: Predictor, name: str, stored: Stored) -> None:
        self.predictor = predictor
        self.name = name
        self.card = stored.card
        self.metrics = stored.metrics

    def predict(
        self,
        inputs: Sequence[Input],
        batch_size: int = 32,
        *,
        abstain_at: float | None = None,
        coverage: float | None = None,
    ) -> list[Answer]:
        """Texts, pairs, lists of words, questions with their context or choices -> one answer each, in their order.

        An answer is a plain dict: `label`, `score`, `probabilities` (classification), `labels`, `score`,
        `probabilities` (multilabel), `value` (regression), `spans`, `words`, `tags`, `score` (tagging), `answer`,
        `start`, `end`, `score`, `no_answer` (question answering), `choice`, `index`, `score`, `probabilities` (multiple
        choice), `text` (generation). `score` is the calibrated probability that the whole answer is right; `truncated`
        says that the end was cut. With `abstain_at=p` answers have `abstained`, whether their score is below p. With
        `coverage=0.9` they have a `prediction_set` (a number: an `interval`) that holds the true answer with at least
        that probability. Where the task card has an out-of-scope threshold they have `out_of_scope` and
        `out_of_scope_score`.
        """
        names = [self.name] * len(inputs)
        return self.predictor.predict(inputs, names, batch_size, abstain_at=abstain_at, coverage=coverage)

    def evaluate(
        self, data: Source, split: str | None = None, batch_size: int = 32, *, abstain_at: float | None = None
    ) -> Scores:
        """Scores on labelled rows and what `judge` tells of trust, all by name."""
        found = self.judge(data, split, batch_size, abstain_at=abstain_at)
        return {**found.scores, **found.trust}

    def judge(
        self, data: Source, split: str | None = None, batch_size: int = 32, *, abstain_at: float | None = None
    ) -> Judgement:
        """Judge on labelled rows: a file, a folder, a hub id, rows (of `split`, else of the test split if any).

        Rows of the out-of-scope class, where the card names one, are judged by whether they are detected.
        """
        card = self.card
        check_wishes(card.task, card.calibration, abstain_at, None)
        given = load_rows(data, card.columns, card.task.kind, split)
        strange = card.calibration.scope.label if card.calibration.scope else None
        rows = [row for row in given if strange is None or row["label"] != strange]
        outside = [unlabelled(row) for row in given if strange is not None and row["label"] == strange]
        check_known(rows, card.task.kind, card.task.labels, split or "the data's")
        features = card.task.encode(self.predictor.tokenizer, [*rows, *outside], card.max_length)
        logits = self.predictor.logits([Job(f, self.name) for f in features], batch_size)
        count = len(rows)
        known = Labelled(logits[:count], features[:count], rows, logits[count:])
        return judge(card.task, card.calibration, known, abstain_at)

    def attention(self, inputs: Sequence[Input], batch_size: int = 32) -> list[dict[str, float]]:
        """The weight of every prompt that the adapter mixes for each input, by name; they sum to 1."""
        return self.predictor.attention(inputs, [self.name] * len(inputs), batch_size)


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

    `dtype` is the backbone's, by default that of its file; with `quantise="int8"` its blocks multiply in int8.
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
    _check_inputs(inputs)
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
    where = device or ("cuda" if torch.cuda.is_available() and quantise is None else "cpu")
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


def mixes_nothing(task: str, card: TaskCard) -> UnsupportedError:
    """What is said where there are no weights of prompts."""
    return UnsupportedError(f"task {task!r} ({card.method}) mixes no prompts, so that there are no weights to show")


def prompt_weights(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    features: Sequence[Features],
    batch_size: int,
    adapter: str | None = None,
) -> list[Logits]:
    """The weights [J] of the prompts that are mixed for each row, the mean over its sequences.

    `adapter` names the one that serves; without it the active one does.
    """

    def run(batch: Sequence[Inputs]) -> list[Logits]:
        names = None if adapter is None else [adapter] * len(batch)
        if isinstance(task, Generation):
            # Prompts are mixed once, before the first token is written.
            shortest = replace(task, num_beams=1, max_new_tokens=1)
            write(model, tokenizer, shortest, [sequence["input_ids"] for sequence in batch], names)
        else:
            inputs = {k: v.to(model.device) for k, v in pad_inputs(batch, tokenizer).items()}
            with torch.inference_mode():
                model(**inputs, **({} if names is None else {"adapter_names": names}))
        found = cast("Sequence[Tensor]", memo(model, "prompt_attention"))
        return [weights.float().cpu().numpy() for weights in found]

    pieces = [sequence for row in features for sequence in row.sequences]
    weights = iter(in_batches(pieces, lambda sequence: len(sequence["input_ids"]), run, batch_size))
    return [np.mean(list(islice(weights, len(row.sequences))), axis=0) for row in features]


def _check_inputs(inputs: Any) -> None:
    if isinstance(inputs, str):
        raise DataError("wanted a list of inputs, found one text; put it in a list")
