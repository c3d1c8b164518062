"""Few rows of many: what is left of a data set when only `shots` rows may be learned from, as in FewGLUE.

Classes, or labels where rows have several, are drawn evenly; of tasks with neither any rows are drawn. The validation
split shrinks to as many rows, drawn alike, since whoever has few labelled rows has few for choosing too; the test split
stays whole.
"""

import random
from collections import Counter, defaultdict
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
    """`count` of the rows, in their old order; each is drawn for the class or label that the fewest drawn rows have.

    So each of n classes or labels has `count // n` rows at least, or all that there are; rows without any label count
    as one more.
    """
    rng = random.Random(seed)
    names = [_classes(row, kind) for row in rows]
    piles: defaultdict[str, list[int]] = defaultdict(list)
    for i, several in enumerate(names):
        for name in several:
            piles[name].append(i)
    order = sorted(piles)
    rng.shuffle(order)
    for name in sorted(piles):
        rng.shuffle(piles[name])
    chosen: set[int] = set()
    taken: Counter[str] = Counter()
    while len(chosen) < count:
        i = piles[min((name for name in order if piles[name]), key=lambda name: taken[name])].pop()
        if i not in chosen:
            chosen.add(i)
            taken.update(names[i])
    return [rows[i] for i in sorted(chosen)]


def _classes(row: Row, kind: str) -> list[str]:
    if kind == "classification":
        return [row["label"]]
    return row["label"] or [""] if kind == "multilabel" else [""]
