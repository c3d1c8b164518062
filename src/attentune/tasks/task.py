"""What a task is: rows -> features -> (logits) -> loss and answers -> scores. Knows no method and no backbone.

A row is one sequence of tokens for most tasks, and several for some (the windows of a context, the choices of a
question). The model runs on sequences; loss, answers and scores are of rows.

Letters: B rows, S sequences of them, T positions, C outputs of the head, L places of a row: see `pack`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from attentune.errors import ConfigError, DataError, UnsupportedError
from attentune.evaluation.metrics import MAIN, Scores
from attentune.tasks.sources import Row

Answer = dict[str, Any]
Logits = NDArray[np.floating]
Inputs = dict[str, list[int]]
"""One sequence for the model: its ids, mask and what else the tokenizer gives, T numbers each."""
Events = tuple[Logits, NDArray[Any]]
Head = Literal["sequence", "token", "language"]
IGNORED = -100
"""The target of a position that has no label; the number that torch and transformers skip."""


@dataclass(frozen=True)
class Features:
    """One row for the model: its sequences; the target of a labelled row; the words of a tagged row.

    Raises:
        DataError: a sequence has no token, for its text is empty and the tokenizer adds none of its own.
    """

    sequences: tuple[Inputs, ...]
    target: Any = None
    truncated: bool = False
    words: tuple["Word", ...] = ()

    def __post_init__(self) -> None:
        if not all(sequence["input_ids"] for sequence in self.sequences):
            raise DataError(
                "wanted a text of at least one token, found an empty one; this tokenizer adds none of its own"
            )

    def __len__(self) -> int:
        return sum(len(sequence["input_ids"]) for sequence in self.sequences)


@dataclass(frozen=True)
class Word:
    """One word of a row: where it stands in the text, and at which position its first token is.

    Words may share a token. None: it has no token, as it was cut off or the tokenizer drops its signs.
    """

    text: str
    start: int
    end: int
    position: int | None


class Task(ABC):
    """One kind of task with its labels; a frozen record, saved as a card."""

    kind: ClassVar[str]
    head: ClassVar[Head] = "sequence"
    """One answer a sequence, one a token, or what the backbone's own language head writes."""
    several: ClassVar[bool] = False
    """Whether a row may be several sequences: its logits are then packed, [L,C] with either head."""
    has_score: ClassVar[bool] = False
    """Whether answers have a `score`, the probability that the whole answer is right, as `is_right` judges it."""
    labels: tuple[str, ...]
    pair: bool

    @property
    def num_outputs(self) -> int:
        """C, the width of the head."""
        return len(self.labels)

    @property
    def main_metric(self) -> str:
        """The score that chooses the best checkpoint; more is better."""
        return MAIN[self.kind]

    @property
    def checkpoint_metric(self) -> str:
        """What chooses the best epoch unless the recipe says otherwise."""
        return self.main_metric

    @abstractmethod
    def encode(self, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], max_length: int) -> list[Features]:
        """Checked rows -> features of at most `max_length` tokens, with a target where the row has a label."""

    def sequences(self, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], max_length: int) -> list[int]:
        """How many sequences `encode` makes of each row, counted without making them."""
        return [1] * len(rows)

    def characters(self, row: Row) -> int:
        """How many characters `encode` reads of a row without a label, a text as often as it is read."""
        return sum(map(length_of, row.values()))

    def with_answer(self, features: Features) -> Features:
        """The features as training reads them, where the model reads the answer too."""
        return features

    @abstractmethod
    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Logits [B,C] or [B,L,C], targets as `target_tensor` made them -> loss [B], a mean over what a row labels."""

    @abstractmethod
    def decode(self, logits: Sequence[Logits], features: Sequence[Features], temperature: float = 1.0) -> list[Answer]:
        """logits, one array [C] or [L,C] a row, and their features -> answers."""

    def fitted(self, logits: Sequence[Logits], features: Sequence[Features], rows: Sequence[Row]) -> Self:
        """The task with what is chosen on labelled rows after training (thresholds); most tasks have no such thing."""
        return self

    @abstractmethod
    def score(self, answers: Sequence[Answer], rows: Sequence[Row]) -> Scores:
        """Answers against labelled rows."""

    def events(self, logits: Sequence[Logits], features: Sequence[Features]) -> Events | None:
        """What was stated and what is true of labelled rows: logits [N,C] with targets [N] or [N,C].

        The shape of the targets is explained in `evaluation.calibration`; N counts words for a task on words. None: the
        kind of task states no probabilities, or the rows hold nothing to judge.
        """
        return None

    def is_right(self, answer: Answer, row: Row) -> bool:
        """Whether the whole answer is right, for a kind of task that `has_score`."""
        raise UnsupportedError(f"an answer of {self.kind} is not simply right or wrong")

    @abstractmethod
    def target_tensor(self, targets: Sequence[Any], length: int) -> Tensor:
        """Targets of B rows -> one tensor; those of tokens are padded to `length`, the most tokens of a row."""

    @abstractmethod
    def to_card(self) -> dict[str, Any]:
        """As plain JSON values; `from_card` is the way back."""

    @classmethod
    @abstractmethod
    def from_card(cls, card: Mapping[str, Any]) -> Self:
        """The task of a card."""


class WithSets(ABC):
    """A task whose answers can be widened to sets that hold the true one with a promised probability."""

    @abstractmethod
    def strangeness(self, answer: Answer, row: Row) -> float:
        """How strange the true answer of a labelled row looks, by an answer without a set."""

    @abstractmethod
    def with_set(self, answer: Answer, quantile: float) -> Answer:
        """The answer with the set of all that is no stranger than `quantile`; it always holds the answer itself."""

    @abstractmethod
    def covers(self, answer: Answer, row: Row) -> bool:
        """Whether the set of an answer holds the truth."""

    @abstractmethod
    def set_size(self, answer: Answer) -> float:
        """How much the set of an answer leaves open."""


def collate(task: Task, features: Sequence[Features], tokenizer: PreTrainedTokenizerBase) -> dict[str, Tensor]:
    """Features -> one batch [S,T] of every input, padded at the right, and `labels` when all rows have a target.

    Where rows may be several sequences, `rows` [S] numbers the row of each; `pack` wants it.
    """
    features = [task.with_answer(f) for f in features]
    batch = pad_inputs([sequence for f in features for sequence in f.sequences], tokenizer)
    if task.several:
        batch["rows"] = torch.tensor([i for i, f in enumerate(features) for _ in f.sequences])
    if all(f.target is not None for f in features):
        batch["labels"] = task.target_tensor([f.target for f in features], max(map(len, features)))
    return batch


def were_cut(
    tokenizer: Any, texts: Sequence[str], pairs: Sequence[str] | None, lengths: Sequence[int], max_length: int
) -> set[int]:
    """Of the sequences that fill `max_length`, those that had more to say."""
    full = [i for i, length in enumerate(lengths) if length >= max_length]
    if not full:
        return set()
    seconds = None if pairs is None else [pairs[i] for i in full]
    whole = tokenizer([texts[i] for i in full], seconds, truncation=False, verbose=False)["input_ids"]
    return {i for i, ids in zip(full, whole, strict=True) if len(ids) > max_length}


def length_of(value: str | Sequence[str]) -> int:
    """Characters of a text, or of a list of texts."""
    return len(value) if isinstance(value, str) else sum(map(len, value))


def pad_inputs(sequences: Sequence[Inputs], tokenizer: PreTrainedTokenizerBase) -> dict[str, Tensor]:
    """Sequences -> one batch [S,T] of every input, padded at the right whatever side the tokenizer prefers."""
    length = max(len(sequence["input_ids"]) for sequence in sequences)
    return {
        name: torch.tensor([padded(s[name], length, padding(name, tokenizer)) for s in sequences])
        for name in sequences[0]
    }


def pack(logits: Tensor, mask: Tensor, rows: Tensor) -> Tensor:
    """Logits of S sequences, [S,C] or [S,T,C] -> of their B rows, sequence after sequence: [B,L,C].

    `mask` [S,T] is 0 where a sequence is padded, `rows` [S] numbers the row of each, rising. A row has a place for each
    of its sequences, or for each of their tokens; what it has less than L is filled with the dtype's minimum, which
    no softmax sees.
    """
    if logits.dim() == 3:
        real = mask.bool()
        logits, rows = logits[real], rows[:, None].expand_as(real)[real]
    parts = list(torch.split(logits, torch.bincount(rows).tolist()))
    return pad_sequence(parts, batch_first=True, padding_value=torch.finfo(logits.dtype).min)


def own_logits(task: Task, logits: Tensor, length: int) -> Tensor:
    """Logits [S,C'] or [S,T',C'] of a task's rows in a mixed batch -> as if alone: [S,C] or [S,T,C]."""
    if logits.dim() == 3:
        logits = logits[:, :length] if task.head == "token" else logits[:, 0]
    return logits[..., : task.num_outputs]


def full(logits: Tensor) -> Tensor:
    """In at least float32, in which losses are computed."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def padded(values: Sequence[int], length: int, value: int) -> list[int]:
    """The values filled up to `length` at the right."""
    return [*values, *[value] * (length - len(values))]


def padding(name: str, tokenizer: PreTrainedTokenizerBase) -> int:
    """What an input is filled up with."""
    if name == "input_ids":
        if not isinstance(tokenizer.pad_token_id, int):
            raise ConfigError("the tokenizer has no padding token, which batches of texts need")
        return tokenizer.pad_token_id
    return int(tokenizer.pad_token_type_id) if name == "token_type_ids" else 0
