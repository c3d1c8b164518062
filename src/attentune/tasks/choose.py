"""A question and its choices -> the right one.

Each choice is a sequence of its own, the question before it; the head gives each one number, and the choices of a row
compete in one softmax (Radford et al. 2018). Rows may have different numbers of choices.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, ClassVar, Self, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from attentune.evaluation import conformal, metrics
from attentune.evaluation.metrics import Scores
from attentune.evaluation.probabilities import softmax
from attentune.tasks.sources import Row
from attentune.tasks.task import Answer, Events, Features, Inputs, Logits, Task, WithSets, full, length_of, were_cut


@dataclass(frozen=True)
class Question(Features):
    """A row with its choices, a sequence each."""

    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class MultipleChoice(Task, WithSets):
    """One of the row's own choices. Answers: `choice`, its `index` and `score`, `probabilities` in their order.

    A `prediction_set` holds the numbers of choices.
    """

    kind: ClassVar[str] = "multiple_choice"
    several: ClassVar[bool] = True
    has_score: ClassVar[bool] = True
    pair: bool = False
    """Whether a row has two texts: what is told, and what is asked of it."""
    labels: tuple[str, ...] = ()

    @property
    def num_outputs(self) -> int:
        """How well a choice suits."""
        return 1

    def encode(self, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], max_length: int) -> list[Features]:
        """Rows with `text`, `choices` and maybe `text_pair` -> features; the text comes first, all else after it.

        What is too long is cut at the longer of the two sides.
        """
        if not rows:
            return []
        first = [row["text"] for row in rows for _ in row["choices"]]
        second = [f"{row['text_pair']} {c}" if "text_pair" in row else c for row in rows for c in row["choices"]]
        encoded = tokenizer(first, second, truncation=True, max_length=max_length, verbose=False)
        sequences: list[Inputs] = [{name: list(encoded[name][i]) for name in encoded} for i in range(len(first))]
        cut = were_cut(tokenizer, first, second, [len(s["input_ids"]) for s in sequences], max_length)
        counts = [len(row["choices"]) for row in rows]
        return [
            Question(
                tuple(sequences[end - count : end]),
                row.get("label"),
                truncated=any(i in cut for i in range(end - count, end)),
                choices=tuple(row["choices"]),
            )
            for row, count, end in zip(rows, counts, accumulate(counts), strict=True)
        ]

    def sequences(self, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], max_length: int) -> list[int]:
        """The choices of each row."""
        return [len(row["choices"]) for row in rows]

    def characters(self, row: Row) -> int:
        """The text is read for every choice."""
        asked = sum(len(row[name]) for name in ("text", "text_pair") if name in row)
        return length_of(row["choices"]) + len(row["choices"]) * asked

    def target_tensor(self, targets: Sequence[int], length: int) -> Tensor:
        """-> [B] numbers of the right choices."""
        return torch.tensor(targets)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy over the choices of each row: logits [B,N,1], targets [B] -> [B]."""
        return F.cross_entropy(full(logits).squeeze(-1), targets, reduction="none")

    def decode(self, logits: Sequence[Logits], features: Sequence[Features], temperature: float = 1.0) -> list[Answer]:
        """Logits [N,1] a row -> answers."""
        rows = cast("Sequence[Question]", features)
        return [self._answer(softmax(z[:, 0], temperature), f) for z, f in zip(logits, rows, strict=True)]

    def _answer(self, p: Logits, features: Question) -> Answer:
        best = int(p.argmax())
        return {
            "choice": features.choices[best],
            "index": best,
            "score": float(p[best]),
            "probabilities": [float(value) for value in p],
            "truncated": features.truncated,
        }

    def events(self, logits: Sequence[Logits], features: Sequence[Features]) -> Events | None:
        """Logits [N,C] with the right choices [N] of N rows; rows with fewer choices end in -inf."""
        if not len(logits):
            return None
        stacked = np.full((len(logits), max(map(len, logits))), -np.inf)
        for row, z in zip(stacked, logits, strict=True):
            row[: len(z)] = z[:, 0]
        return stacked, np.array([f.target for f in features])

    def is_right(self, answer: Answer, row: Row) -> bool:
        """Whether it is the row's choice."""
        return answer["index"] == row["label"]

    def strangeness(self, answer: Answer, row: Row) -> float:
        """1 - p of the right choice (Sadinle, Lei, Wasserman 2019)."""
        return 1.0 - answer["probabilities"][row["label"]]

    def with_set(self, answer: Answer, quantile: float) -> Answer:
        """With `prediction_set`, numbers of choices, the most probable first."""
        p = answer["probabilities"]
        inside = [i for i in range(len(p)) if i == answer["index"] or conformal.is_inside(1.0 - p[i], quantile)]
        return {**answer, "prediction_set": sorted(inside, key=lambda i: -p[i])}

    def covers(self, answer: Answer, row: Row) -> bool:
        """Whether the set holds the right choice."""
        return row["label"] in answer["prediction_set"]

    def set_size(self, answer: Answer) -> float:
        """The number of choices in the set."""
        return float(len(answer["prediction_set"]))

    def score(self, answers: Sequence[Answer], rows: Sequence[Row]) -> Scores:
        """Accuracy."""
        return metrics.score(self.kind, [a["index"] for a in answers], [row["label"] for row in rows])

    def to_card(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {"kind": self.kind, "pair": self.pair}

    @classmethod
    def from_card(cls, card: Mapping[str, Any]) -> Self:
        """The task of a card."""
        return cls(pair=bool(card["pair"]))
