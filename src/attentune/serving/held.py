"""The tasks of a batch, one held for each row: their groups, where rows part, and their answers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from attentune.heads import States, TaskOutput, assemble
from attentune.method import Group, start_of
from attentune.serving.entry import Entry
from attentune.serving.head import Head
from attentune.serving.shelf import Shelf


@dataclass(frozen=True, eq=False)
class Held:
    """A version of a task with its row: what happens to the task or its folder meanwhile does not matter."""

    entry: Entry
    row: Tensor


def first_block(one: Held | None, joints: range) -> int:
    """The block at which a row's adapter first edits something; past the last joint for none that does."""
    last = joints.stop - 1
    first = last if one is None else min(one.entry.shelf.first, last)
    return first if first in joints else 0


def parts(held: Sequence[Held | None], joints: range) -> list[int]:
    """[B] the block at which each row may part from its like; [0, ...] where rows are put in front."""
    if any(one is not None and one.entry.shelf.widens for one in held):
        return [0] * len(held)
    return [first_block(one, joints) for one in held]


def order_of(held: Sequence[Held | None]) -> list[int]:
    """The rows so that those of each shelf follow one another, the bare ones last."""
    first: dict[Shelf, int] = {}
    for i, one in enumerate(held):
        if one is not None:
            first.setdefault(one.entry.shelf, i)
    return sorted(range(len(held)), key=lambda i: len(held) if (one := held[i]) is None else first[one.entry.shelf])


def groups(held: Sequence[Held | None], device: torch.device) -> Iterable[Group]:
    """The rows of each shelf together."""
    members: defaultdict[Shelf, list[int]] = defaultdict(list)
    for i, one in enumerate(held):
        if one is not None:
            members[one.entry.shelf].append(i)
    # One slice a row: the shelf tells tasks apart by it.
    bodies = {id(one.row): one.row[: one.entry.shelf.size] for one in held if one is not None}
    for shelf, at in members.items():
        some = len(at) < len(held)
        index = torch.tensor(at, device=device) if some else None
        yield shelf.group([bodies[id(cast("Held", held[i]).row)] for i in at], index, start_of(at) if some else None)


def answers(held: Sequence[Held | None], states: States) -> TaskOutput:
    """What the heads of the batch make of its states, the rows of each kind of head together."""
    members: defaultdict[Head, list[int]] = defaultdict(list)
    for i, one in enumerate(held):
        if one is not None:
            members[one.entry.head].append(i)
    of_row = {id(one.row): one.row[one.entry.shelf.size :] for one in held if one is not None}
    found: list[tuple[Tensor, Tensor]] = []
    for head, at in members.items():
        rows, device = [of_row[id(cast("Held", held[i]).row)] for i in at], states.last.device
        if len(at) == len(held):
            logits = head.answer(rows, None, states)
            return TaskOutput(logits=logits, num_labels=torch.full((len(held),), logits.shape[-1], device=device))
        index = torch.tensor(at, device=device)
        found.append((index, head.answer(rows, index, states)))
    return assemble(found, states)
