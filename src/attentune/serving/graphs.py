"""Forwards recorded once for each shape and replayed: a small batch on a GPU takes its work, not its launches.

The numbers that a batch differs in, tokens, masks and the rows of its tasks, are copied to where the recording reads
them. So a recording belongs to a shelf (one method and shape, any number of tasks) and a size of batch, which is filled
up with rows and padding that nobody sees.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor
from torch.nn.functional import pad

from attentune.anatomy import max_length
from attentune.errors import AttentuneError
from attentune.forward import memo, requested
from attentune.heads import States
from attentune.model import TaskModel
from attentune.serving.cuda_graphs import CudaGraphs, Run, Tensors
from attentune.serving.held import Held
from attentune.serving.shelf import Shelf
from attentune.sites import Stack, stacks_in
from attentune.sites.rows import RowRequest

log = logging.getLogger(__name__)
Record = Callable[[Run, Tensors], Run]
"""A run and an example -> the same run, replayed."""

SHORTEST, LARGEST = 16, 4096
"""Tokens that a row is filled up to at least, and those of a batch at most: a larger one has work enough."""


def filled(count: int) -> int:
    """The next of 1, 2, 3, 4, 6, 8, 12, 16, ...: few sizes, and at most half as much again."""
    power = 1 << (count - 1).bit_length()
    return power * 3 // 4 if power > 2 and count <= power * 3 // 4 else power


class Graphs:
    """The recordings of a bank's model, by shelf and size; of each shelf the `most` last used are kept.

    What cannot be recorded runs as it does without recordings: batches of several shelves, rows of the bare backbone,
    more than 4,096 tokens, methods that see padding, architectures that copy numbers to the device on their way.
    """

    def __init__(self, model: TaskModel, record: Record | None = None, most: int = 64) -> None:
        """`record` is by default that of a GPU."""
        self.model, self.most = model, most
        self.record = CudaGraphs(model.device) if record is None else record
        self.recordings: WeakKeyDictionary[Shelf, OrderedDict[Any, Run]] = WeakKeyDictionary()
        """By shelf, which takes them along when it goes, and by the shapes of what differs."""
        self._failed: WeakSet[Shelf] = WeakSet()

    def __call__(self, held: Sequence[Held | None], given: Tensors) -> tuple[States, list[Tensor | None]] | None:
        """What the model makes of a batch, and each row's weights [J] of prompts; None for one that is to run as it is.

        `given` are [B,T] each. So is a batch with a row that its method refuses: a run has the sentence for it.
        """
        tasks = _of_one_shelf(held)
        stack = next(iter(stacks_in(self.model.backbone)), None)
        if tasks is None or stack is None:
            return None
        shelf = tasks[0].entry.shelf
        batch, length = given["input_ids"].shape
        rows, width = filled(batch), self._width(shelf, length)
        if (
            shelf in self._failed
            or not recordable(shelf, stack)
            or width < length
            or rows * width > LARGEST
            or any(value.shape != (batch, length) for value in given.values())
        ):
            return None
        bodies = [one.row[: shelf.size] for one in tasks]
        alone = all(one.row is tasks[0].row for one in tasks)
        inputs = {name: self._fill(name, value, rows, width) for name, value in given.items()}
        inputs["tasks"] = torch.stack(bodies[:1] if alone else [*bodies, *bodies[:1] * (rows - batch)])
        found = self._replay(shelf, inputs)
        if found is None or not bool(found["holds"]):
            return None
        states = States(
            found["last"][:batch, :length],
            given["attention_mask"],
            found["pooler"][:batch] if "pooler" in found else None,
            lambda: found["prefix"][:batch] if "prefix" in found else None,
            given["input_ids"],
            self.model.heads.vocabulary,
        )
        return states, list(found["weights"][:batch]) if "weights" in found else [None] * batch

    def _width(self, shelf: Shelf, length: int) -> int:
        """Tokens that rows are filled up to; fewer than `length` where the backbone has no place for so many."""
        room = max_length(self.model.config)
        width = max(filled(length), SHORTEST)
        return width if room is None else min(width, room - shelf.taken)

    def _fill(self, name: str, value: Tensor, rows: int, width: int) -> Tensor:
        """[B,T] -> [rows,width], with padding, and the first row once more for each that is missing."""
        padding = (getattr(self.model.config, "pad_token_id", None) or 0) if name == "input_ids" else 0
        wide = pad(value, (0, width - value.shape[1]), value=padding)
        return torch.cat([wide, wide[:1].expand(rows - len(wide), -1)])

    def _replay(self, shelf: Shelf, inputs: Tensors) -> Tensors | None:
        made = self.recordings.setdefault(shelf, OrderedDict())
        key = tuple(sorted((name, value.shape) for name, value in inputs.items()))
        if key not in made:
            try:
                made[key] = self.record(lambda given: run(self.model, shelf, given), inputs)
            except AttentuneError:
                return None
            except Exception:
                log.exception("a forward of %s could not be recorded; it runs without", shelf.method.name)
                self._failed.add(shelf)
                return None
        made.move_to_end(key)
        if len(made) > self.most:
            made.popitem(last=False)
        return made[key](inputs)


def recordable(shelf: Shelf, stack: Stack) -> bool:
    """Whether a forward of the shelf's tasks leaves its numbers on the device, and padding leaves its answers alone."""
    anatomy = stack.anatomy
    reads = anatomy.global_mask or anatomy.shared_position_projections
    return not reads and not shelf.method.sees_padding(shelf.config)


def run(model: TaskModel, shelf: Shelf, given: Mapping[str, Tensor]) -> Tensors:
    """One forward as a function of tensors: `given` and "tasks" [R,N], a task a row or one for all."""
    inputs = {name: value for name, value in given.items() if name != "tasks"}
    batch, device = len(inputs["input_ids"]), given["tasks"].device
    group = shelf.stacked(given["tasks"])
    stacks = stacks_in(model.backbone)
    with requested(stacks, RowRequest.given((shelf.name,) * batch, (group,), device)):
        states = model.states(**inputs)
    weights = memo(model, "prompt_attention")
    doubts = [doubt for stack in stacks if stack.frame is not None for doubt in stack.frame.doubts]
    holds = torch.stack(doubts).all() if doubts else torch.ones((), dtype=torch.bool, device=device)
    for stack in stacks:
        # The batch in flight would hold memory of the recording.
        stack.frame = stack.front = None
    found = {
        "last": states.last,
        "holds": holds,
        "pooler": states.pooler,
        "prefix": states.prefix(),
        "weights": torch.stack([row for row in weights if row is not None]) if weights is not None else None,
    }
    return {name: value for name, value in found.items() if value is not None}


def _of_one_shelf(held: Sequence[Held | None]) -> list[Held] | None:
    """The tasks of all rows, where they stand on one shelf."""
    tasks = [one for one in held if one is not None]
    return tasks if len(tasks) == len(held) and len({one.entry.shelf for one in tasks}) == 1 else None
