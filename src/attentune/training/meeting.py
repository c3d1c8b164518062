"""Where tasks that train for themselves take their steps together: one forward and one backward for all of them.

Every task has a model, an optimiser and an order of rows of its own, as if it were alone. A step stacks the batches of
all tasks in flight, each row names its task's adapter, and the sum of the tasks' losses goes backward: rows do not see
each other, so each task's parameters get the gradient of its own loss and no other.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from accelerate.utils import convert_to_fp32
from peft import PeftModel
from torch import Tensor
from torch.nn.functional import pad

from attentune.model import TaskModel
from attentune.sites import AdapterLayer
from attentune.tasks.task import own_logits, padding
from attentune.training.frozen import FrozenPart, ask_no_input_gradients
from attentune.training.ground import Ground
from attentune.training.loop import Share, TaskTrainer, model_inputs


class Meeting:
    """One model over a backbone's weights, in which the adapters are those of the tasks' own models."""

    def __init__(self, ground: Ground) -> None:
        self.model = TaskModel(ground.twin().base)
        self._tokenizer = ground.tokenizer
        self._frozen: FrozenPart | None = None
        self._names: dict[TaskTrainer, str] = {}
        self._count = 0

    def step(self, shares: Sequence[Share]) -> list[Tensor]:
        """The batches of some tasks -> their losses; the gradients are on the parameters."""
        for share in shares:
            if share.trainer not in self._names:
                self._enter(share.trainer)
        rows = [share.trainer for share in shares for _ in share.inputs["input_ids"]]
        names = [self._names[trainer] for trainer in rows]
        if self._frozen is not None:
            self._frozen.kept = [kept for trainer in rows if trainer.frozen for kept in trainer.frozen.kept]
        self.model.train()
        # As accelerate wraps the forward of a task that trains alone: the loss and the backward are outside of it.
        with shares[0].trainer.accelerator.autocast():
            logits = self.model(**self._stacked(shares), adapter_names=names).logits
        losses = _losses(shares, cast("Tensor", convert_to_fp32(logits)))
        torch.stack(losses).sum().backward()
        return [loss.detach() for loss in losses]

    def _enter(self, trainer: TaskTrainer) -> None:
        """Put a task's adapter in: the very parameters that its own model has."""
        own = cast("TaskModel", cast("PeftModel", trainer.model).get_base_model())
        name, config = f"lane{self._count}", cast("Any", trainer.model).peft_config["default"]
        if own.heads.vocabulary is not None:
            self.model.heads.vocabulary = own.heads.vocabulary
        self.model.add_adapter(name, config)
        self._names[trainer], self._count = name, self._count + 1
        mine = {path: layer for path, layer in own.named_modules() if isinstance(layer, AdapterLayer)}
        for path, layer in self.model.named_modules():
            if isinstance(layer, AdapterLayer) and name in layer.configs:
                for key, tensor in mine[path].tensors("default").items():
                    getattr(layer, key)[name] = tensor
        self._activate()
        if trainer.frozen is not None and self._frozen is None:
            # All tasks have one method and the same blocks edited.
            self._frozen = FrozenPart(self.model, trainer.frozen.first, trainer.frozen.kept)
        self.model.to(trainer.args.device)
        if own.is_gradient_checkpointing:
            self.model.activation_checkpointing_enable({"use_reentrant": False})
            ask_no_input_gradients(self.model)

    def leave(self, trainer: TaskTrainer) -> None:
        """A task is done, or has failed."""
        if trainer in self._names:
            self.model.delete_adapter(self._names.pop(trainer))
            self._activate()

    def _activate(self) -> None:
        # peft lets active adapters train and no others; these are the tasks' own parameters.
        self.model.set_adapter(list(self._names.values()))

    def _stacked(self, shares: Sequence[Share]) -> dict[str, Tensor]:
        """The batches [S,T] of all tasks under each other, padded at the right to the longest."""
        inputs = [model_inputs(share.inputs) for share in shares]
        longest = max(one["input_ids"].shape[1] for one in inputs)
        return {
            key: torch.cat([pad(one[key], (0, longest - one[key].shape[1]), value=value) for one in inputs])
            for key in inputs[0]
            for value in (padding(key, self._tokenizer),)
        }


def _losses(shares: Sequence[Share], logits: Tensor) -> list[Tensor]:
    losses: list[Tensor] = []
    start = 0
    for share in shares:
        rows, length = share.inputs["input_ids"].shape
        losses.append(share.loss(own_logits(share.trainer.task, logits[start : start + rows], length)))
        start += rows
    return losses
