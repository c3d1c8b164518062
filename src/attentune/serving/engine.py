"""Text in, answers out: tokens, queue, batches, and each answer by its own task."""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from transformers import PreTrainedTokenizerBase

from attentune.backbones import load_tokenizer
from attentune.batches import joined, logits_by_sequence
from attentune.confidence import answers, check_wishes
from attentune.errors import AttentuneError, UnsupportedError
from attentune.predict import mixes_nothing
from attentune.serving.bank import Bank
from attentune.serving.batcher import Batcher, Piece
from attentune.serving.entry import Entry
from attentune.serving.held import Held
from attentune.tasks import Answer, Features
from attentune.tasks.inputs import Input, as_row
from attentune.tasks.sources import Row
from attentune.tasks.task import Logits, pad_inputs

log = logging.getLogger(__name__)

CHARACTERS = 8_000_000
"""What one request may have read at most: seconds of a tokenizer, which reads for all of them."""


@dataclass(frozen=True)
class Ask:
    """One input for one task, and what is wished of the answer: see `Adapter.predict`."""

    task: str | Held
    input: Input
    abstain_at: float | None = None
    coverage: float | None = None
    attention: bool = False
    """Give the weights of the prompts that are mixed for the input, too: see `Predictor.attention`."""


@dataclass(frozen=True)
class Ran:
    """What is told of a batch."""

    rows: int
    tokens: int
    """Without padding."""
    padded: int
    """With padding."""
    tasks: int
    waited: float
    """Seconds that its oldest sequence waited."""
    seconds: float


@dataclass(frozen=True)
class _Read:
    """The asks of one task that can be read."""

    held: Held
    at: list[int]
    """Which they are."""
    rows: list[Row]


@dataclass(eq=False)
class _Waiting:
    """An accepted ask: what was made of it, and who waits."""

    ask: Ask
    entry: Entry
    features: Features
    pieces: list[Piece]
    answer: Future[Answer]


class Engine:
    """Answers asks of any tasks of a bank in dynamic batches; a thread of its own runs the model.

    An ask that fails fails alone: an error of its text or its task reaches only its own future. Cancelling a future
    takes its sequences out of the queue. The bank may change at any time; an ask is answered by the version of its task
    that was there when it came.
    """

    def __init__(
        self,
        bank: Bank,
        tokenizer: PreTrainedTokenizerBase,
        batcher: Batcher | None = None,
        observe: Callable[[Ran], None] = lambda ran: None,
    ) -> None:
        self.bank, self.tokenizer, self.observe = bank, tokenizer, observe
        self.batcher = Batcher() if batcher is None else batcher
        # One tokenizer serves every thread, and truncation is a state of it.
        self._encoding = threading.Lock()
        # What has many windows takes long to answer, and the next batch need not wait for it.
        self._finishing = ThreadPoolExecutor(1, "attentune-answers")
        self._worker = threading.Thread(target=self._work, name="attentune-engine", daemon=True)
        self._worker.start()

    @classmethod
    def load(cls, backbone: str = "minilm", **options: Any) -> Engine:
        """An engine on an empty bank; `options` are those of `Bank`."""
        bank = Bank(backbone, **options)
        return cls(bank, load_tokenizer(backbone, bank.model.backbone))

    def submit(self, asks: Sequence[Ask]) -> list[Future[Answer]]:
        """Queue asks; each future gives the answer, or raises what stood against it.

        Raises:
            OverloadedError: the queue has no room for all of them; none is queued.
            UnsupportedError: it never has, or there is more to read than one request may have; none is queued.
        """
        futures = [Future[Answer]() for _ in asks]
        read = self._roomy(list(self._read(asks, futures)), futures)
        waiting = [one for part in read for one in self._encode(part, asks, futures)]
        self.batcher.put([piece for one in waiting for piece in one.pieces])
        for one in waiting:
            self._watch(one)
        return futures

    def answer(self, asks: Sequence[Ask]) -> list[Answer]:
        """Answers in the order of the asks; raises the first error there is, when all are done."""
        futures = self.submit(asks)
        wait(futures)
        return [future.result() for future in futures]

    @property
    def alive(self) -> bool:
        """Whether it answers."""
        return self._worker.is_alive()

    def close(self) -> None:
        """Answer what was accepted, and end."""
        self.batcher.close()
        self._worker.join()
        self._finishing.shutdown()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _read(self, asks: Sequence[Ask], futures: Sequence[Future[Answer]]) -> Iterable[_Read]:
        """The asks of each task together; one that cannot be read gets its error and no place."""
        by_task: defaultdict[str | Entry, list[int]] = defaultdict(list)
        for i, ask in enumerate(asks):
            by_task[ask.task if isinstance(ask.task, str) else ask.task.entry].append(i)
        for places in by_task.values():
            task = asks[places[0]].task
            try:
                held = self.bank.hold(task) if isinstance(task, str) else task
            except AttentuneError as error:
                for i in places:
                    futures[i].set_exception(error)
                continue
            card, part = held.entry.card, _Read(held, [], [])
            for i in places:
                try:
                    check_wishes(card.task, card.calibration, asks[i].abstain_at, asks[i].coverage)
                    if asks[i].attention and not held.entry.prompts:
                        raise mixes_nothing(held.entry.name, card)
                    part.rows.append(as_row(asks[i].input, card, "the input"))
                    part.at.append(i)
                except Exception as error:
                    futures[i].set_exception(_told(error, held.entry))
            if part.rows:
                yield part

    def _roomy(self, read: Sequence[_Read], futures: Sequence[Future[Answer]]) -> list[_Read]:
        """What is read, before it is tokenised: a small request may be many sequences, or one text many times."""
        count = sum(part.held.entry.card.task.characters(row) for part in read for row in part.rows)
        if count > CHARACTERS:
            raise UnsupportedError(
                f"the request has {count} characters, each text once for every task and choice that it is read for, "
                f"and one request may have {CHARACTERS}; ask for fewer at once"
            )
        found, countable = 0, list[_Read]()
        with self._encoding:
            for part in read:
                card = part.held.entry.card
                try:
                    found += sum(card.task.sequences(self.tokenizer, part.rows, card.max_length))
                    countable.append(part)
                except Exception as error:
                    for i in part.at:
                        futures[i].set_exception(_told(error, part.held.entry))
        self.batcher.check(found)
        return countable

    def _encode(self, part: _Read, asks: Sequence[Ask], futures: Sequence[Future[Answer]]) -> Iterable[_Waiting]:
        """Tokenise the asks of a task together; one that does not fit gets its error and no place."""
        held = part.held
        for i, features in zip(part.at, self._features(held.entry, part.rows), strict=True):
            if isinstance(features, Exception):
                futures[i].set_exception(features)
                continue
            pieces = [Piece(held, sequence, asks[i].attention) for sequence in features.sequences]
            yield _Waiting(asks[i], held.entry, features, pieces, futures[i])

    def _features(self, entry: Entry, rows: Sequence[Row]) -> Sequence[Features | Exception]:
        try:
            with self._encoding:
                return entry.card.task.encode(self.tokenizer, rows, entry.card.max_length)
        except Exception as error:
            if len(rows) == 1:
                return [_told(error, entry)]
            return [self._features(entry, [row])[0] for row in rows]

    def _watch(self, one: _Waiting) -> None:
        """Answer when all sequences are done; withdraw them when nobody waits any more."""
        left = len(one.pieces)
        lock = threading.Lock()

        def piece_done(_: Future[Logits]) -> None:
            nonlocal left
            with lock:
                left -= 1
                last = left == 0
            if not last or one.answer.cancelled():
                return
            if len(one.pieces) > 1:
                self._finishing.submit(self._finish, one)
            else:
                self._finish(one)

        def withdrawn(answer: Future[Answer]) -> None:
            if answer.cancelled():
                for piece in one.pieces:
                    piece.logits.cancel()

        one.answer.add_done_callback(withdrawn)
        for piece in one.pieces:
            piece.logits.add_done_callback(piece_done)

    def _finish(self, one: _Waiting) -> None:
        if not one.answer.set_running_or_notify_cancel():
            return
        try:
            logits = joined([piece.logits.result() for piece in one.pieces], one.entry.card.task)
            card, ask = one.entry.card, one.ask
            (found,) = answers(card.task, card.calibration, [logits], [one.features], ask.abstain_at, ask.coverage)
            if ask.attention:
                mean = np.mean([cast("Logits", piece.weights) for piece in one.pieces], axis=0)
                found = {**found, "attention": dict(zip(one.entry.prompts, map(float, mean), strict=True))}
            one.answer.set_result(found)
        except Exception as error:
            one.answer.set_exception(error)

    def _work(self) -> None:
        while (batch := self.batcher.take()) is not None:
            self._run(batch)

    def _run(self, batch: Sequence[Piece]) -> None:
        """Run a batch; when it fails, its sequences one by one, so that only what is at fault fails."""
        begin = time.monotonic()
        try:
            logits = self._logits(batch)
        except Exception as error:
            if len(batch) == 1:
                if not isinstance(error, AttentuneError):
                    log.exception("a sequence of task %r could not be run", batch[0].held.entry.name)
                batch[0].logits.set_exception(error)
                return
            for piece in batch:
                self._run([piece])
            return
        for piece, z in zip(batch, logits, strict=True):
            piece.logits.set_result(z)
        lengths = [piece.length for piece in batch]
        self.observe(
            Ran(
                rows=len(batch),
                tokens=sum(lengths),
                padded=max(lengths) * len(batch),
                tasks=len({piece.held.entry.name for piece in batch}),
                waited=begin - min(piece.arrived for piece in batch),
                seconds=time.monotonic() - begin,
            )
        )

    def _logits(self, batch: Sequence[Piece]) -> list[Logits]:
        sequences = [piece.inputs for piece in batch]
        inputs = pad_inputs(sequences, self.tokenizer)
        ids, mask = inputs.pop("input_ids"), inputs.pop("attention_mask")
        wanted = any(piece.attention for piece in batch)
        out = self.bank(ids, mask, [piece.held for piece in batch], prompt_attention=wanted, **inputs)
        assert out.logits is not None
        for piece, weights in zip(batch, out.prompt_attention or (), strict=False):
            piece.weights = None if weights is None else weights.float().cpu().numpy()
        tasks = [piece.held.entry.card.task for piece in batch]
        return logits_by_sequence(out.logits.float().cpu().numpy(), sequences, tasks)


def _told(error: Exception, entry: Entry) -> Exception:
    """The error; one that no ask should meet is logged, whatever a card has that another server wrote."""
    if not isinstance(error, AttentuneError):
        log.error("an ask of task %r could not be read", entry.name, exc_info=error)
    return error
