"""Which rows of a batch are the same up to which block: one text asked of many tasks runs once until they part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Plan:
    """Run the rows `lead` [N] up to `block`; then row i of the batch goes on from the one at `rows[i]`."""

    block: int
    lead: list[int]
    rows: list[int]


def plan(inputs: Mapping[str, Tensor], parts: Sequence[int]) -> Plan | None:
    """The plan that spares most rows times blocks; None: nothing can be spared.

    inputs: tensors [B, ...]; parts: [B] the block at which each row's adapter first edits something.
    """
    if len(parts) < 2 or not any(parts):
        return None
    texts = _texts(inputs)
    best: Plan | None = None
    spared = 0
    for block in sorted(set(parts) - {0}):
        places: dict[tuple[int, int], int] = {}
        # A row that is edited before that stands for itself alone.
        rows = [
            places.setdefault((text, -1 if part >= block else i), len(places))
            for i, (text, part) in enumerate(zip(texts, parts, strict=True))
        ]
        if (saving := block * (len(rows) - len(places))) > spared:
            lead = [rows.index(place) for place in range(len(places))]
            best, spared = Plan(block, lead, rows), saving
    return best


def _texts(inputs: Mapping[str, Tensor]) -> list[int]:
    """[B] equal numbers for rows that are equal in every input."""
    flat = torch.cat([value.flatten(1).long() for value in inputs.values()], 1)
    return flat.unique(dim=0, return_inverse=True)[1].tolist()
