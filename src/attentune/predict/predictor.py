"""Rows of any tasks, in mixed batches, on one frozen backbone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from threading import RLock
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from attentune.batches import in_batches, joined, logits_by_sequence
from attentune.card import TaskCard
from attentune.confidence import answers, check_wishes
from attentune.errors import ConfigError, DataError
from attentune.method import METHODS
from attentune.model import LanguageModel
from attentune.predict.weights import mixes_nothing, prompt_weights
from attentune.tasks import Answer, Features, Task
from attentune.tasks.generate import Generation
from attentune.tasks.inputs import Input, as_row
from attentune.tasks.task import Inputs, Logits, pad_inputs
from attentune.writing import write


@dataclass(frozen=True)
class Job:
    """One row: what goes in, and by which task it is answered."""

    features: Features
    task: str


class Predictor:
    """One frozen backbone with the adapters of any number of tasks; `writer` has those of the tasks that write.

    Threads may share one: they take turns, as a batch in flight lives on the model.
    """

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
        self._running = RLock()

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
            with self._running:
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
        check_inputs(inputs)
        if len(tasks) != len(inputs):
            raise DataError(f"{len(inputs)} inputs and {len(tasks)} tasks; one task for each input is needed")
        jobs: list[Job | None] = [None] * len(inputs)
        for task in dict.fromkeys(tasks):
            at = [i for i, name in enumerate(tasks) if name == task]
            card = self.card(task)
            rows = [as_row(inputs[i], card, f"input {i + 1}") for i in at]
            with self._running:  # A tokenizer keeps how far it cuts texts.
                encoded = card.task.encode(self.tokenizer, rows, card.max_length)
            for i, features in zip(at, encoded, strict=True):
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
            with self._running:
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


def check_inputs(inputs: Any) -> None:
    """A DataError where one text stands for a list of them."""
    if isinstance(inputs, str):
        raise DataError("wanted a list of inputs, found one text; put it in a list")
