"""The linear probe, done well: the same head on frozen states, fitted until it converges, its strength by validation.

For classes this is multinomial logistic regression, for several labels one regression each, for numbers ridge
regression, for tags logistic regression on the states of words: whatever the task's own loss makes of a linear layer.
Padding has no part in it.

    minimise  C sum_rows loss(W s + b, y) + |W|^2 / 2,    s: the states, each feature with mean 0 and variance 1
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from attentune.batches import logits_by_row
from attentune.comparison.plain import Plain
from attentune.tasks import Features, Task
from attentune.tasks.task import Logits, collate, pack

STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)
"""The grid of C."""
POOLINGS = ("mean", "cls")
STEPS = 500
"""Of L-BFGS, at most."""


def fit(
    model: Plain,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    train: Sequence[Features],
    validation: Sequence[Features],
    judge: Callable[[list[Logits]], float],
    batch_size: int = 32,
) -> str:
    """Set the head to the pooling and C whose logits of the validation rows `judge` likes most.

    The answer says which they are. The backbone reads every row once a pooling.
    """
    best: tuple[float, str, str, Tensor, Tensor] | None = None
    for pooling in POOLINGS if model.head.kind == "sequence" else (model.head.pooling,):
        model.head = replace(model.head, pooling=pooling)
        known, asked = (_batches(model, task, tokenizer, rows, batch_size) for rows in (train, validation))
        for strength in STRENGTHS:
            weight, bias = regress(task, known, model.heads.out_features, strength)
            value = judge(_answers(task, asked, validation, weight, bias, batch_size))
            if best is None or value > best[0]:
                best = (value, pooling, f"C {strength:g}, {pooling}", weight, bias)
    assert best is not None
    model.head = replace(model.head, pooling=best[1])
    _set(model, best[3], best[4])
    return best[2]


@dataclass(frozen=True)
class Batch:
    """States of S sequences, of B rows, and what their rows should give."""

    states: Tensor
    """[S,D], or [S,T,D] of a head on tokens."""
    targets: Tensor
    mask: Tensor | None = None
    """[S,T], 1 where there is a token; and `rows` [S], where rows may be several sequences: what `pack` wants."""
    rows: Tensor | None = None

    @property
    def real(self) -> Tensor:
        """[N,D], the states of what is no padding."""
        return self.states if self.mask is None or self.states.ndim == 2 else self.states[self.mask.bool()]

    def logits(self, weight: Tensor, bias: Tensor) -> Tensor:
        """[B,C] or [B,L,C], a row each."""
        logits = self.states @ weight.T + bias
        if self.rows is not None and self.mask is not None:
            logits = pack(logits, self.mask, self.rows)
        return logits

    def loss(self, task: Task, weight: Tensor, bias: Tensor) -> Tensor:
        """The sum over rows."""
        return task.loss(self.logits(weight, bias), self.targets).sum()


def regress(task: Task, batches: Sequence[Batch], outputs: int, strength: float) -> tuple[Tensor, Tensor]:
    """-> weight [C,D] and bias [C], for the states as they are."""
    every = torch.cat([batch.real for batch in batches])
    mean, spread = every.mean(0), every.std(0, correction=0).clamp(min=1e-6)
    scaled = [replace(batch, states=(batch.states - mean) / spread) for batch in batches]
    weight = torch.zeros(outputs, every.shape[1], dtype=torch.float64, device=every.device, requires_grad=True)
    bias = torch.zeros(outputs, dtype=torch.float64, device=every.device, requires_grad=True)
    rows = sum(len(batch.targets) for batch in batches)
    solver = torch.optim.LBFGS(
        [weight, bias], max_iter=STEPS, tolerance_grad=1e-7, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def cost() -> Tensor:
        solver.zero_grad()
        value = torch.stack([batch.loss(task, weight, bias) for batch in scaled]).sum() / rows
        value = value + weight.square().sum() / (2 * strength * rows)
        value.backward()
        return value

    solver.step(cost)
    with torch.no_grad():
        return weight / spread, bias - (weight / spread) @ mean


def _batches(
    model: Plain, task: Task, tokenizer: PreTrainedTokenizerBase, features: Sequence[Features], batch_size: int
) -> list[Batch]:
    model.eval()
    device = model.heads.weight.device
    batches: list[Batch] = []
    for start in range(0, len(features), batch_size):
        given = collate(task, features[start : start + batch_size], tokenizer)
        given = {name: x.to(device) for name, x in given.items()}
        targets, rows = given.pop("labels"), given.pop("rows", None)
        with torch.no_grad():
            states = model.states(**given).double()
        batches.append(Batch(states, targets, given["attention_mask"], rows))
    return batches


def _answers(
    task: Task, batches: Sequence[Batch], features: Sequence[Features], weight: Tensor, bias: Tensor, batch_size: int
) -> list[Logits]:
    """The logits of each row; `batches` are of `batch_size` rows of `features`."""
    found: list[Logits] = []
    for number, batch in enumerate(batches):
        rows = features[number * batch_size : (number + 1) * batch_size]
        found += logits_by_row(batch.logits(weight, bias).float().cpu().numpy(), rows, task)
    return found


def _set(model: Plain, weight: Tensor, bias: Tensor) -> None:
    with torch.no_grad():
        model.heads.weight.copy_(weight)
        model.heads.bias.copy_(bias)
