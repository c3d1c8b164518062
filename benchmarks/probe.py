"""The frozen probe done well: logistic regression, run until it converges, on states of the untouched backbone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save
from sets import Set
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from attentune.batches import in_batches
from attentune.heads import States
from attentune.tasks import Features
from attentune.tasks.sources import Row
from attentune.tasks.task import IGNORED, Logits, pad_inputs

STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)
"""The grid of C, for features of variance 1."""


@dataclass(frozen=True)
class Probed:
    """The probe that was best on validation."""

    validation: float
    test: float
    pooling: str
    strength: float
    bytes: int
    parameters: int


class Probe:
    """States of one set's rows, computed once."""

    def __init__(self, chosen: Set, base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.set, self.base, self.tokenizer = chosen, base.eval(), tokenizer
        self.splits = {name: self._encode(getattr(chosen.data, name)) for name in ("train", "validation", "test")}

    def run(self) -> Probed:
        """The better of mean and first-token states (of tags: the states of first tokens of words), C by validation."""
        found = [
            self._fit(pooling) for pooling in (("mean", "cls") if self.set.task.head == "sequence" else ("token",))
        ]
        return max((one for some in found for one in some), key=lambda one: one.validation)

    def _encode(self, rows: Sequence[Row]) -> tuple[list[Features], Sequence[Row]]:
        return self.set.task.encode(self.tokenizer, rows, self.set.max_length), rows

    def _states(self, features: Sequence[Features], pooling: str) -> list[NDArray[Any]]:
        """[D] a row, or [T,D] for tags."""

        def read(part: Sequence[Features]) -> list[NDArray[Any]]:
            batch = pad_inputs([f.sequences[0] for f in part], self.tokenizer)
            states = States(self.base(**batch).last_hidden_state, batch["attention_mask"], None)
            return list((states.last if pooling == "token" else states.pooled(pooling, None)).numpy())

        with torch.inference_mode():
            return in_batches(features, len, read, 64)

    def _fit(self, pooling: str) -> list[Probed]:
        states = {name: self._states(features, pooling) for name, (features, _) in self.splits.items()}
        x, y = self._examples(states["train"], self.splits["train"][0])
        scaler = StandardScaler().fit(x)
        found: list[Probed] = []
        for strength in STRENGTHS:
            model = LogisticRegression(C=strength, max_iter=10_000).fit(scaler.transform(x), y)
            scores = [self._score(model, scaler, states[name], *self.splits[name]) for name in ("validation", "test")]
            # The scaling is folded into the coefficients where the probe is used, so these are all that is kept.
            tensors: dict[str, NDArray[Any]] = {
                "weight": model.coef_.astype(np.float32),
                "bias": model.intercept_.astype(np.float32),
            }
            size, count = len(save(tensors)), sum(t.size for t in tensors.values())
            found.append(Probed(scores[0], scores[1], pooling, strength, size, count))
        return found

    def _examples(self, states: list[NDArray[Any]], features: Sequence[Features]) -> tuple[NDArray[Any], NDArray[Any]]:
        if self.set.task.head == "sequence":
            return np.stack(states), np.array([f.target for f in features])
        pairs = [
            (z[i], t) for z, f in zip(states, features, strict=True) for i, t in enumerate(f.target) if t != IGNORED
        ]
        return np.stack([z for z, _ in pairs]), np.array([t for _, t in pairs])

    def _score(
        self,
        model: LogisticRegression,
        scaler: StandardScaler,
        states: list[NDArray[Any]],
        features: Sequence[Features],
        rows: Sequence[Row],
    ) -> float:
        logits: list[Logits] = []
        for z in states:
            known: Any = model.decision_function(scaler.transform(np.atleast_2d(z)))
            if known.ndim == 1:
                known = np.stack([np.zeros_like(known), known], -1)
            whole = np.full((len(known), self.set.task.num_outputs), -1e9)
            whole[:, model.classes_] = known
            logits.append(whole if z.ndim == 2 else whole[0])
        return self.set.score(self.set.task.decode(logits, features), rows)
