"""One training loop for every contender: the same batches, steps, schedule, clipping and choice of the best epoch."""

import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from sets import Set
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, get_linear_schedule_with_warmup

from attentune.batches import in_batches, logits_by_row
from attentune.tasks import Features
from attentune.tasks.sources import Row
from attentune.tasks.task import Logits, collate


@dataclass(frozen=True)
class Plan:
    """What all contenders have in common."""

    epochs: int = 4
    batch_size: int = 16
    head_rate: float = 5e-3
    """Of the linear head; a set's recipes say which. The learning rate of a run is that of all other tensors."""
    warmup: float = 0.06
    clip: float = 1.0
    precision: str = "bfloat16"
    """bfloat16: matrix products by autocast, weights in float32."""


@dataclass(frozen=True)
class Trained:
    """What one run gave; the scores are those of the epoch that was best on validation."""

    validation: float
    test: float
    epoch: int
    seconds: float
    """CPU seconds of all epochs with their validations; the test rows are not in it."""


class Loop:
    """A plan on the encoded rows of one set."""

    def __init__(self, plan: Plan, chosen: Set, tokenizer: PreTrainedTokenizerBase) -> None:
        self.plan, self.set, self.tokenizer = plan, chosen, tokenizer
        data, task = chosen.data, chosen.task
        self.train = task.encode(tokenizer, data.train, chosen.max_length)
        self.validation = (task.encode(tokenizer, data.validation, chosen.max_length), data.validation)
        self.test = (task.encode(tokenizer, data.test, chosen.max_length), data.test)

    def run(self, model: nn.Module, rate: float, seed: int) -> Trained:
        """Train `model` in place; it ends as it was after its best epoch."""
        plan, task, start = self.plan, self.set.task, time.process_time()
        optimiser = torch.optim.AdamW(self._groups(model, rate), weight_decay=0.0)
        total = plan.epochs * math.ceil(len(self.train) / plan.batch_size)
        schedule = get_linear_schedule_with_warmup(optimiser, round(total * plan.warmup), total)
        weights = [p for p in model.parameters() if p.requires_grad]
        shuffle, best = random.Random(seed), (-1.0, 0, [p.detach().clone() for p in weights])
        for epoch in range(1, plan.epochs + 1):
            model.train()
            for features in self._batches(shuffle):
                batch = collate(task, features, self.tokenizer)
                labels = batch.pop("labels")
                task.loss(self._logits(model, batch), labels).mean().backward()
                nn.utils.clip_grad_norm_(weights, plan.clip)
                optimiser.step()
                schedule.step()
                optimiser.zero_grad()
            score = self.score(model, *self.validation)
            if score > best[0]:
                best = (score, epoch, [p.detach().clone() for p in weights])
        seconds = time.process_time() - start
        with torch.no_grad():
            for p, value in zip(weights, best[2], strict=True):
                p.copy_(value)
        return Trained(best[0], self.score(model, *self.test), best[1], round(seconds, 1))

    def score(self, model: nn.Module, features: Sequence[Features], rows: Sequence[Row]) -> float:
        """The set's score of labelled rows."""
        model.eval()

        def answer(part: Sequence[Features]) -> list[Logits]:
            batch = collate(self.set.task, part, self.tokenizer)
            batch.pop("labels")
            logits = self._logits(model, batch).float().numpy()
            return logits_by_row(logits, part, self.set.task)

        with torch.inference_mode():
            logits = in_batches(features, len, answer, 64)
        return self.set.score(self.set.task.decode(logits, features), rows)

    def _logits(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.plan.precision == "bfloat16"):
            return model(**batch).logits

    def _groups(self, model: nn.Module, rate: float) -> list[dict[str, object]]:
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        return [
            {"params": [p for name, p in named if "heads" not in name.split(".")], "lr": rate},
            {"params": [p for name, p in named if "heads" in name.split(".")], "lr": self.plan.head_rate},
        ]

    def _batches(self, shuffle: random.Random) -> Iterator[list[Features]]:
        """Batches of rows of like length: sorted within pools of ten batches, batches in any order."""
        size = self.plan.batch_size
        rows = shuffle.sample(self.train, len(self.train))
        pools = [sorted(rows[i : i + 10 * size], key=len) for i in range(0, len(rows), 10 * size)]
        batches = [pool[i : i + size] for pool in pools for i in range(0, len(pool), size)]
        shuffle.shuffle(batches)
        yield from batches
