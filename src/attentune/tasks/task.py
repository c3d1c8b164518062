"""What a task is: rows -> features -> (logits) -> loss and answers -> scores. Knows no method and no backbone.

Letters: B rows, T positions, C outputs of the head.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from attentune.errors import ConfigError
from attentune.evaluation.metrics import MAIN, Scores
from attentune.tasks.sources import Row

Answer = dict[str, Any]
Logits = NDArray[np.floating]
IGNORED = -100
"""The target of a position that has no label; the number that torch and transformers skip."""


@dataclass(frozen=True)
class Features:
    """One row for the model: `inputs` of T ids each; the target of a labelled row; the words of a tagged row."""

    inputs: dict[str, list[int]]
    target: Any = None
    truncated: bool = False
    words: tuple["Word", ...] = ()

    def __len__(self) -> int:
        return len(self.inputs["input_ids"])


@dataclass(frozen=True)
class Word:
    """One word of a row: where it stands in the text, and at which position its first token is (None: cut off)."""

    text: str
    start: int
    end: int
    position: int | None


class Task(ABC):
    """One kind of task with its labels; a frozen record, saved as a card."""

    kind: ClassVar[str]
    head: ClassVar[Literal["sequence", "token"]] = "sequence"
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

    @abstractmethod
    def encode(self, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], max_length: int) -> list[Features]:
        """Checked rows -> features of at most `max_length` tokens, with a target where the row has a label."""

    @abstractmethod
    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Logits [B,C] or [B,T,C], targets as `target_tensor` made them -> loss [B], a mean over what a row labels."""

    @abstractmethod
    def decode(self, logits: Sequence[Logits], features: Sequence[Features], temperature: float = 1.0) -> list[Answer]:
        """logits, one array [C] or [T,C] a row, and their features -> answers."""

    @abstractmethod
    def score(self, answers: Sequence[Answer], rows: Sequence[Row]) -> Scores:
        """Answers against labelled rows."""

    @abstractmethod
    def target_tensor(self, targets: Sequence[Any], length: int) -> Tensor:
        """Targets of B rows -> one tensor; those of tokens are padded to `length`."""

    @abstractmethod
    def to_card(self) -> dict[str, Any]:
        """As plain JSON values; `from_card` is the way back."""

    @classmethod
    @abstractmethod
    def from_card(cls, card: Mapping[str, Any]) -> Self:
        """The task of a card."""


def collate(task: Task, features: Sequence[Features], tokenizer: PreTrainedTokenizerBase) -> dict[str, Tensor]:
    """Features -> one batch [B,T] of every input, padded at the right, and `labels` when all rows have a target."""
    batch = pad_inputs(features, tokenizer)
    if all(f.target is not None for f in features):
        batch["labels"] = task.target_tensor([f.target for f in features], batch["input_ids"].shape[1])
    return batch


def pad_inputs(features: Sequence[Features], tokenizer: PreTrainedTokenizerBase) -> dict[str, Tensor]:
    """Features -> one batch [B,T] of every input, padded at the right whatever side the tokenizer prefers."""
    length = max(map(len, features))
    return {
        name: torch.tensor([padded(f.inputs[name], length, _padding(name, tokenizer)) for f in features])
        for name in features[0].inputs
    }


def padded(values: Sequence[int], length: int, value: int) -> list[int]:
    """The values filled up to `length` at the right."""
    return [*values, *[value] * (length - len(values))]


def _padding(name: str, tokenizer: PreTrainedTokenizerBase) -> int:
    if name == "input_ids":
        if not isinstance(tokenizer.pad_token_id, int):
            raise ConfigError("the tokenizer has no padding token, which batches of texts need")
        return tokenizer.pad_token_id
    return int(tokenizer.pad_token_type_id) if name == "token_type_ids" else 0
