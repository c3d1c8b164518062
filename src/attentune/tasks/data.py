"""Any source -> `Data`: checked rows of every split, the labels, and what was guessed on the way.

A validation split is made when none is given: seeded, and stratified where rows have one class. Labels are read from
the whole training split before that, so a made split never holds an unknown one.
"""

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from attentune.errors import ConfigError, DataError
from attentune.tasks import asked, written
from attentune.tasks.columns import KINDS, Columns, choose, guess_kind
from attentune.tasks.inputs import unlabelled
from attentune.tasks.rows import OPEN, check_known, check_rows, classes_of, tags_of
from attentune.tasks.sources import Raw, Row, Source, read

ALIASES = {"pair": "classification", "single": "classification", "token": "tagging", "ner": "tagging",
           "qa": "question_answering", "choice": "multiple_choice"}  # fmt: skip


@dataclass(frozen=True)
class Data:
    """Checked rows of one task. `notes` says in plain sentences what was guessed or made."""

    kind: str
    columns: Columns
    labels: tuple[str, ...]
    train: list[Row]
    validation: list[Row]
    test: list[Row] = field(default_factory=list[Row])
    notes: tuple[str, ...] = ()
    outside: dict[str, list[Row]] = field(default_factory=dict[str, list[Row]])
    """Out-of-scope rows: those of `test`, and as `validation` all others, as none of them is learned."""

    @property
    def pair(self) -> bool:
        """Whether rows are pairs of texts."""
        return self.columns.pair


def load_data(
    source: Source | Data,
    kind: str | None = None,
    text: Sequence[str] = (),
    label: str | None = None,
    validation: float = 0.1,
    seed: int = 0,
    out_of_scope: str | None = None,
    choices: Sequence[str] = (),
) -> Data:
    """Read, guess, check and split.

    `kind` is one of classification (pair), multilabel, regression, tagging, question_answering (qa), multiple_choice,
    generation; `text`, `label` and `choices` name columns; `validation` is the share of training rows that is set aside
    when the source has no validation split; rows of the class `out_of_scope` are set apart.
    """
    if isinstance(source, Data):
        return source
    wants_pair = kind == "pair"
    if kind is not None and (kind := ALIASES.get(kind, kind)) not in KINDS:
        raise ConfigError(f"no task kind {kind!r}; the kinds are {', '.join(KINDS)}, pair")
    raw = read(source)
    if "train" not in raw:
        raise DataError(f"no train split; the splits are {', '.join(raw)}")
    names = raw["train"].columns
    guessed = kind is None
    if guessed and not (text or label):
        kind = "multiple_choice" if choices else asked.kind_of(names)
    columns = choose(names, text, label, kind=kind, choices=choices)
    if wants_pair and not columns.pair:
        raise DataError(f"a pair has two texts, found {columns.shown()}; name both text columns")
    if kind == "generation" and columns.pair:
        raise DataError(f"generation reads one text, found {columns.shown()}; name the column to read")
    notes = [f"columns: {columns.shown()}"]
    if kind is None:
        kind = _guess(raw["train"], columns)
    if guessed:
        notes.append(f"task: {kind}")
    found = _with_labels(raw, columns, None if label else kind, notes)
    every = {name: check_rows(split.rows, own, kind, name) for name, split, own in found}
    splits, outside = every, dict[str, list[Row]]()
    if out_of_scope is not None:
        splits, outside = set_apart(every, kind, out_of_scope)
        notes.append(f"out of scope: {', '.join(f'{len(rows)} {name} rows' for name, rows in outside.items())}")
    labels = _labels(raw["train"], splits["train"], columns, kind, out_of_scope)
    for name, rows in every.items():
        check_known(rows, kind, labels, name, out_of_scope)
    train, held_out = splits["train"], splits.get("validation")
    if held_out is None:
        train, held_out = split_off(train, kind, validation, seed, by_input=True)
        notes.append(f"validation: {len(held_out)} of {len(splits['train'])} training rows set aside (seed {seed})")
    if kind == "generation":
        train = [{**row, "label": [text]} for row in train for text in row["label"]]
    return Data(kind, columns, labels, train, held_out, splits.get("test", []), tuple(notes), outside)


def load_rows(
    source: Source,
    columns: Columns,
    kind: str,
    split: str | None = None,
    usual: Sequence[str] = ("test", "validation", "train"),
) -> list[Row]:
    """Labelled rows to score: of `split`, else of the only split there is, else of the first of `usual` that there is.

    Columns are those of training where the source has them, else guessed.

    Raises:
        DataError: no such split, or rows that are not of the task's form.
    """
    raw = read(source)
    if split is not None and split not in raw:
        raise DataError(f"no split {split!r}; the splits are {', '.join(raw)}")
    name = split or next((n for n in (usual if len(raw) > 1 else raw) if n in raw), None)
    if name is None:
        raise DataError(f"no {usual[0]} split; the splits are {', '.join(raw)}: name the one to read")
    names, trained = raw[name].columns, columns
    columns = _of_split(columns, names, kind)
    if columns.label is None or not {*columns.inputs, *columns.choices, columns.label} <= set(names):
        columns = choose(names, kind=kind)
    elif columns.start not in (None, *names):
        columns = choose(names, columns.inputs, columns.label, kind=kind)
    if len(columns.inputs) != len(trained.inputs):
        raise DataError(
            f"the {name} rows have {columns.shown()}, and the task was trained on {trained.shown()}; "
            "give the columns the names of training"
        )
    return check_rows(raw[name].rows, columns, kind, name)


def _guess(raw: Raw, columns: Columns) -> str:
    assert columns.label is not None
    first = columns.inputs[0]
    kind = guess_kind((row.get(first) for row in raw.rows), (row.get(columns.label) for row in raw.rows), columns)
    if kind == "classification":
        distinct = len({str(row.get(columns.label)) for row in raw.rows})
        if len(raw.rows) >= 20 and distinct > len(raw.rows) / 2:
            raise DataError(
                f"column {columns.label!r} has {distinct} different values in {len(raw.rows)} rows, too many for "
                "classes; name another label column, or the task: regression, generation"
            )
    if kind != "tagging" and columns.inputs[0] in raw.classes:
        raise DataError(f"column {columns.inputs[0]!r} holds classes, not text; name the text column")
    return kind


def _with_labels(
    raw: dict[str, Raw], columns: Columns, guessed: str | None, notes: list[str]
) -> list[tuple[str, Raw, Columns]]:
    """The splits that have labels, with their columns; a hub's test split often hides them all, no error of the user.

    Where the label column was not named but guessed, for the kind of task `guessed`, each split may call it otherwise.
    """
    kept: list[tuple[str, Raw, Columns]] = []
    learned = [row.get(columns.label or "") for row in raw["train"].rows]
    for name, split in raw.items():
        own = _of_split(columns, split.columns, guessed)
        if own != columns:
            notes.append(f"columns of {name}: {own.shown()}")
        if name != "test" or not _hides(split, own.label or "", learned):
            kept.append((name, split, own))
        elif own.label in split.columns:
            notes.append("test: left out, it has no labels")
        else:
            notes.append(f"test: left out, it has no column {own.label!r}; it has {', '.join(split.columns)}")
    return kept


def _hides(split: Raw, label: str, learned: Sequence[Any]) -> bool:
    """Whether a split keeps its labels back: it has none, or none says anything while each of the `learned` does."""
    cells = [row.get(label) for row in split.rows]
    silent = all(map(_says_nothing, cells)) and not any(map(_says_nothing, learned))
    return silent or all(cell is None for cell in cells)


def _says_nothing(cell: Any) -> bool:
    """Nothing, no text, no class, no answer, or tags that are all nothing."""
    if isinstance(cell, Mapping):
        cell = cast("Mapping[str, Any]", cell).get("text")
    if isinstance(cell, list):
        return all(map(_says_nothing, cast("list[Any]", cell)))
    return cell is None or (isinstance(cell, str) and not cell.strip())


def _of_split(columns: Columns, names: Sequence[str], kind: str | None) -> Columns:
    """The columns of training as a split with these names has them: what is written may have another name there."""
    if kind != "generation" or columns.label is None or columns.label in names:
        return columns
    return replace(columns, label=written.other_name(names, columns.inputs[0], columns.label) or columns.label)


def _labels(raw: Raw, rows: list[Row], columns: Columns, kind: str, left_out: str | None) -> tuple[str, ...]:
    if kind in OPEN:
        return ()
    labels = raw.classes.get(columns.label or "") or classes_of(rows, kind)
    labels = tuple(name for name in labels if name != left_out)
    if kind == "tagging":
        labels = tags_of(labels, classes_of(rows, kind))
    if kind in {"classification", "tagging"} and len(labels) < 2:
        raise DataError(f"training has one class only, {', '.join(labels)}; at least two are needed")
    if kind == "multilabel" and not labels:
        raise DataError("no training row has a label; at least one is needed")
    return labels


def set_apart(splits: dict[str, list[Row]], kind: str, label: str) -> tuple[dict[str, list[Row]], dict[str, list[Row]]]:
    """Splits -> the same without the rows of the class `label`, and those rows: of test, and of all other splits."""
    if kind != "classification":
        raise ConfigError(f"out-of-scope rows are known by their class, which rows of {kind} do not have")
    inside: dict[str, list[Row]] = {}
    outside: dict[str, list[Row]] = {}
    for name, rows in splits.items():
        inside[name] = [row for row in rows if row["label"] != label]
        found = [row for row in rows if row["label"] == label]
        if found:
            outside.setdefault("test" if name == "test" else "validation", []).extend(found)
        if not inside[name]:
            raise DataError(f"every {name} row is of the out-of-scope class {label!r}; others are needed to learn")
    if "validation" not in outside:
        raise DataError(
            f"no training or validation row is of the out-of-scope class {label!r}, so none can choose the threshold"
        )
    return inside, outside


def parted(rows: Sequence[Row], label: str | None) -> tuple[list[Row], list[Row]]:
    """Labelled rows -> those to judge, and those of the out-of-scope class `label`, if there is one, without it.

    Raises:
        DataError: none is to judge.
    """
    inside = [row for row in rows if label is None or row["label"] != label]
    if not inside:
        raise DataError(f"every row is of the out-of-scope class {label!r}; others are needed")
    return inside, [unlabelled(row) for row in rows if label is not None and row["label"] == label]


def split_off(
    rows: list[Row], kind: str, share: float, seed: int, by_input: bool = False
) -> tuple[list[Row], list[Row]]:
    """Rows -> (what stays, what is set aside), each in the old order; classes in proportion.

    With `by_input` rows of one input stay together, so that none is judged by what was learned, unless there are so
    few different inputs that none could be set aside, or a class would go with it.
    """
    if not 0 < share < 1:
        raise ConfigError(f"the validation share lies between 0 and 1, found {share}")
    if len(rows) < 2:
        raise DataError("one training row only; a validation split needs at least two rows")
    count = min(max(round(len(rows) * share), 1), len(rows) - 1)
    classes = [row["label"] if kind == "classification" else "" for row in rows]
    chosen = _drawn(_alike(rows), classes, count, seed) if by_input else set[int]()
    learned = {name for i, name in enumerate(classes) if i not in chosen}
    if not chosen or learned != set(classes):
        chosen = _drawn([[i] for i in range(len(rows))], classes, count, seed)
    stay = [row for i, row in enumerate(rows) if i not in chosen]
    return stay, [row for i, row in enumerate(rows) if i in chosen]


def _drawn(alike: Sequence[list[int]], classes: Sequence[str], count: int, seed: int) -> set[int]:
    """The indices of `count` rows or somewhat fewer, those of one input together; classes in proportion."""
    chosen: set[int] = set()
    for place in _spread([classes[indices[0]] for indices in alike], seed):
        if len(chosen) + len(alike[place]) <= count:
            chosen.update(alike[place])
    return chosen


def _alike(rows: Sequence[Row]) -> list[list[int]]:
    """The indices of the rows of each input, in the order in which inputs first occur."""
    found: defaultdict[tuple[Any, ...], list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        values = unlabelled(row).values()
        found[tuple(tuple(cast("list[str]", v)) if isinstance(v, list) else v for v in values)].append(i)
    return list(found.values())


def _spread(groups: Sequence[str], seed: int) -> list[int]:
    """Indices so ordered that every beginning of the list holds the groups in proportion; lone rows come last."""
    rng = random.Random(seed)
    members: defaultdict[str, list[int]] = defaultdict(list)
    for i, group in enumerate(groups):
        members[group].append(i)
    keys: dict[int, float] = {}
    for name in sorted(members):
        indices = members[name]
        rng.shuffle(indices)
        start = rng.random()
        for rank, i in enumerate(indices):
            keys[i] = (rank + start) / len(indices) if len(indices) > 1 else 2.0
    return sorted(keys, key=lambda i: (keys[i], i))
