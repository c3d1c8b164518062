"""One text or a pair of texts -> a class, a set of classes, or a number."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from attentune.evaluation import conformal, metrics
from attentune.evaluation.metrics import Scores
from attentune.evaluation.probabilities import sigmoid, softmax
from attentune.tasks.sources import Row
from attentune.tasks.task import Answer, Events, Features, Logits, Task, WithSets, full, were_cut


class TextTask(Task, WithSets):
    """What the tasks on whole texts share: tokenisation, cards, and sets."""

    def encode(self, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], max_length: int) -> list[Features]:
        """Texts (or pairs, the longer one cut first) -> features."""
        if not rows:
            return []
        encoded = tokenizer(
            [row["text"] for row in rows],
            [row["text_pair"] for row in rows] if self.pair else None,
            truncation=True,
            max_length=max_length,
            verbose=False,
        )
        cut = were_cut(
            tokenizer,
            [row["text"] for row in rows],
            [row["text_pair"] for row in rows] if self.pair else None,
            [len(ids) for ids in encoded["input_ids"]],
            max_length,
        )
        return [
            Features(
                ({name: list(encoded[name][i]) for name in encoded},),
                target=self.target(row["label"]) if "label" in row else None,
                truncated=i in cut,
            )
            for i, row in enumerate(rows)
        ]

    @abstractmethod
    def target(self, label: Any) -> Any:
        """The label of a row -> what the loss compares with."""

    def events(self, logits: Sequence[Logits], features: Sequence[Features]) -> Events | None:
        """Logits [N,C] with the targets of N rows: [N] class numbers, or [N,C] of 0 and 1."""
        return (np.stack(logits), np.array([f.target for f in features])) if len(logits) else None

    def set_size(self, answer: Answer) -> float:
        """The number of classes in the set."""
        return float(len(answer["prediction_set"]))

    def to_card(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {"kind": self.kind, "labels": list(self.labels), "pair": self.pair}

    @classmethod
    def from_card(cls, card: Mapping[str, Any]) -> Self:
        """The task of a card."""
        return cls(labels=tuple(card["labels"]), pair=bool(card["pair"]))  # pyright: ignore[reportCallIssue]


@dataclass(frozen=True)
class Classification(TextTask):
    """Exactly one class a row. Answers: `label`, its `score`, `probabilities` by class."""

    kind: ClassVar[str] = "classification"
    has_score: ClassVar[bool] = True
    labels: tuple[str, ...]
    pair: bool = False

    def target(self, label: str) -> int:
        """Class name -> its number."""
        return self.labels.index(label)

    def target_tensor(self, targets: Sequence[int], length: int) -> Tensor:
        """-> [B] class numbers."""
        return torch.tensor(targets)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy: logits [B,C], targets [B] -> [B]."""
        return F.cross_entropy(full(logits), targets, reduction="none")

    def decode(self, logits: Sequence[Logits], features: Sequence[Features], temperature: float = 1.0) -> list[Answer]:
        """Logits [C] a row -> answers."""
        return [self._answer(softmax(z, temperature), f) for z, f in zip(logits, features, strict=True)]

    def _answer(self, p: Logits, features: Features) -> Answer:
        best = int(p.argmax())
        return {
            "label": self.labels[best],
            "score": float(p[best]),
            "probabilities": by_name(self.labels, p),
            "truncated": features.truncated,
        }

    def is_right(self, answer: Answer, row: Row) -> bool:
        """Whether it is the row's class."""
        return answer["label"] == row["label"]

    def strangeness(self, answer: Answer, row: Row) -> float:
        """1 - p of the row's class (Sadinle, Lei, Wasserman 2019)."""
        return 1.0 - answer["probabilities"][row["label"]]

    def with_set(self, answer: Answer, quantile: float) -> Answer:
        """With `prediction_set`, class names, the most probable first."""
        return {**answer, "prediction_set": _members(answer["probabilities"], quantile, [answer["label"]])}

    def covers(self, answer: Answer, row: Row) -> bool:
        """Whether the set holds the row's class."""
        return row["label"] in answer["prediction_set"]

    def score(self, answers: Sequence[Answer], rows: Sequence[Row]) -> Scores:
        """Accuracy, macro F1, Matthews; with two classes also the F1 of each."""
        return metrics.score(self.kind, [a["label"] for a in answers], [row["label"] for row in rows], self.labels)


@dataclass(frozen=True)
class MultiLabel(TextTask):
    """Any number of classes a row: those whose probability is at least `threshold`.

    Answers: `labels`, `score` (the probability that every class is decided right, as if classes were independent),
    `probabilities`.
    """

    kind: ClassVar[str] = "multilabel"
    has_score: ClassVar[bool] = True
    labels: tuple[str, ...]
    pair: bool = False
    threshold: float = 0.5

    def target(self, label: Sequence[str]) -> list[float]:
        """Class names -> 0 or 1 for each class."""
        return [float(name in label) for name in self.labels]

    def target_tensor(self, targets: Sequence[list[float]], length: int) -> Tensor:
        """-> [B,C] of 0 and 1."""
        return torch.tensor(targets)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Binary cross-entropy: logits [B,C], targets [B,C] -> [B], the mean over classes."""
        z = full(logits)
        return F.binary_cross_entropy_with_logits(z, targets.to(z.dtype), reduction="none").mean(-1)

    def decode(self, logits: Sequence[Logits], features: Sequence[Features], temperature: float = 1.0) -> list[Answer]:
        """Logits [C] a row -> answers."""
        return [self._answer(sigmoid(z, temperature), f) for z, f in zip(logits, features, strict=True)]

    def _answer(self, p: Logits, features: Features) -> Answer:
        on = p >= self.threshold
        return {
            "labels": [name for name, chosen in zip(self.labels, on, strict=True) if chosen],
            "score": float(np.prod(np.where(on, p, 1.0 - p))),
            "probabilities": by_name(self.labels, p),
            "truncated": features.truncated,
        }

    def is_right(self, answer: Answer, row: Row) -> bool:
        """Whether these are the row's classes, all and no other."""
        return set(answer["labels"]) == set(row["label"])

    def strangeness(self, answer: Answer, row: Row) -> float:
        """The largest 1 - p among the row's classes, 0 where it has none (Cauchois, Gupta, Duchi 2021)."""
        return max((1.0 - answer["probabilities"][name] for name in row["label"]), default=0.0)

    def with_set(self, answer: Answer, quantile: float) -> Answer:
        """With `prediction_set`, class names that include all of the row's, the most probable first."""
        return {**answer, "prediction_set": _members(answer["probabilities"], quantile, answer["labels"])}

    def covers(self, answer: Answer, row: Row) -> bool:
        """Whether the set holds all of the row's classes."""
        return set(row["label"]) <= set(answer["prediction_set"])

    def score(self, answers: Sequence[Answer], rows: Sequence[Row]) -> Scores:
        """Micro and macro F1, exact match."""
        return metrics.score(
            self.kind, [self.target(a["labels"]) for a in answers], [self.target(row["label"]) for row in rows]
        )

    def to_card(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {**super().to_card(), "threshold": self.threshold}

    @classmethod
    def from_card(cls, card: Mapping[str, Any]) -> Self:
        """The task of a card."""
        return cls(tuple(card["labels"]), bool(card["pair"]), float(card["threshold"]))


@dataclass(frozen=True)
class Regression(TextTask):
    """A number a row; the head learns (y - mean) / std of the training targets.

    Answers: `value`, in y's own unit.
    """

    kind: ClassVar[str] = "regression"
    labels: tuple[str, ...] = ()
    pair: bool = False
    mean: float = 0.0
    std: float = 1.0

    @classmethod
    def of(cls, values: Sequence[float], pair: bool = False) -> Self:
        """The task whose unit is that of these training targets."""
        return cls(pair=pair, mean=float(np.mean(values)), std=float(np.std(values)) or 1.0)

    @property
    def num_outputs(self) -> int:
        """One number."""
        return 1

    def target(self, label: float) -> float:
        """The label y -> (y - mean) / std."""
        return (label - self.mean) / self.std

    def target_tensor(self, targets: Sequence[float], length: int) -> Tensor:
        """-> [B] standardised numbers."""
        return torch.tensor(targets, dtype=torch.float32)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Squared error in standard units: logits [B,1], targets [B] -> [B]."""
        return (full(logits).squeeze(-1) - targets) ** 2

    def decode(self, logits: Sequence[Logits], features: Sequence[Features], temperature: float = 1.0) -> list[Answer]:
        """Logits [1] a row -> answers; a number has no temperature."""
        return [
            {"value": float(z[0]) * self.std + self.mean, "truncated": f.truncated}
            for z, f in zip(logits, features, strict=True)
        ]

    def events(self, logits: Sequence[Logits], features: Sequence[Features]) -> Events | None:
        """A number states no probability."""
        return None

    def strangeness(self, answer: Answer, row: Row) -> float:
        """The distance to the row's number, in its own unit."""
        return abs(answer["value"] - row["label"])

    def with_set(self, answer: Answer, quantile: float) -> Answer:
        """With `interval`, the lowest and the highest number."""
        # A row as far away as the quantile itself lies inside, however the ends are rounded.
        low, high = np.nextafter([answer["value"] - quantile, answer["value"] + quantile], [-np.inf, np.inf])
        return {**answer, "interval": [float(low), float(high)]}

    def covers(self, answer: Answer, row: Row) -> bool:
        """Whether the interval holds the row's number."""
        low, high = answer["interval"]
        return low <= row["label"] <= high

    def set_size(self, answer: Answer) -> float:
        """The width of the interval."""
        low, high = answer["interval"]
        return high - low

    def score(self, answers: Sequence[Answer], rows: Sequence[Row]) -> Scores:
        """Pearson, Spearman, MSE, R2."""
        return metrics.score(self.kind, [a["value"] for a in answers], [row["label"] for row in rows])

    def to_card(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {**super().to_card(), "mean": self.mean, "std": self.std}

    @classmethod
    def from_card(cls, card: Mapping[str, Any]) -> Self:
        """The task of a card."""
        return cls(pair=bool(card["pair"]), mean=float(card["mean"]), std=float(card["std"]))


def by_name(labels: Sequence[str], values: Logits) -> dict[str, float]:
    """Numbers by class name, in the order of the labels."""
    return {name: float(value) for name, value in zip(labels, values, strict=True)}


def _members(probabilities: Mapping[str, float], quantile: float, always: Sequence[str]) -> list[str]:
    """The classes with 1 - p of at most `quantile`, and those of the answer, the most probable first."""
    inside = [name for name, p in probabilities.items() if name in always or conformal.is_inside(1.0 - p, quantile)]
    return sorted(inside, key=lambda name: -probabilities[name])
