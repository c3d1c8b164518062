"""Few rows of many: what is left of a data set when only `shots` rows may be learned from, as in FewGLUE.

Classes are drawn evenly. The validation split shrinks to as many rows, drawn alike, since whoever has few labelled rows
has few for choosing too; the test split stays whole.
"""

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from attentune.errors import DataError
from attentune.tasks.data import Data
from attentune.tasks.sources import Row


def few(data: Data, shots: int, seed: int) -> Data:
    """`shots` training rows in all, and at most as many for validation; another seed draws others.

    Raises:
        DataError: there are fewer rows, or more classes than shots.
    """
    if not 1 <= shots <= len(data.train):
        raise DataError(f"shots={shots} of {len(data.train)} training rows; wanted 1 to {len(data.train)}")
    if data.kind == "classification" and shots < len(data.labels):
        raise DataError(f"shots={shots} for {len(data.labels)} classes; at least one row a class is needed")
    train = draw(data.train, data.kind, shots, f"train {seed}")
    validation = draw(data.validation, data.kind, min(shots, len(data.validation)), f"validation {seed}")
    note = f"shots: {len(train)} training and {len(validation)} validation rows drawn (seed {seed})"
    return replace(data, train=train, validation=validation, notes=(*data.notes, note))


def draw(rows: Sequence[Row], kind: str, count: int, seed: str) -> list[Row]:
    """`count` of the rows, in their old order; where rows have one class each as many of each class as there are."""
    rng = random.Random(seed)
    piles: defaultdict[str, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        piles[row["label"] if kind == "classification" else ""].append(i)
    order = sorted(piles)
    rng.shuffle(order)
    for name in sorted(piles):
        rng.shuffle(piles[name])
    chosen: list[int] = []
    while len(chosen) < count:
        chosen += [piles[name].pop() for name in order if piles[name]]
    # The last round may have taken too many: those of its last classes go back.
    return [rows[i] for i in sorted(chosen[:count])]
