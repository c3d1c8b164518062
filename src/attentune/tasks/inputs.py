"""What a user asks, in any of the allowed forms -> a checked row of the task, without a label."""

import reprlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

from attentune.errors import DataError
from attentune.tasks.cells import brief
from attentune.tasks.columns import Columns
from attentune.tasks.rows import check_row, check_texts
from attentune.tasks.sources import Row
from attentune.tasks.task import Task

Input = str | Sequence[Any] | Row
"""A text, a pair of texts (a question and its context too), a list of words (tagging), a question followed by its
choices, or a row with the columns of training."""


def unlabelled(row: Row) -> Row:
    """The row without what there is to learn."""
    return {key: value for key, value in row.items() if key not in ("label", "tags", "answers")}


class Card(Protocol):
    """What of a task card is needed."""

    @property
    def name(self) -> str:
        """Of the task."""
        ...

    @property
    def task(self) -> Task:
        """Its kind."""
        ...

    @property
    def columns(self) -> Columns:
        """Those of training."""
        ...


def as_row(item: Any, card: Card, where: str) -> Row:
    """An input of any allowed form -> a row of the task, or a DataError that says which form is wanted."""
    row = _as_row(item, card, where)
    check_texts(row, where)
    return row


def _as_row(item: Any, card: Card, where: str) -> Row:
    task, columns, name = card.task, card.columns, card.name
    if task.kind in ("question_answering", "multiple_choice"):
        return _asked(item, task, columns, name, where)
    if isinstance(item, Mapping):
        item = _from_columns(cast("Mapping[str, Any]", item), task, columns, where)
    texts = cast("list[Any]", list(item)) if isinstance(item, list | tuple) else [item]
    are_texts = all(isinstance(text, str) for text in texts)
    if task.kind == "tagging":
        wanted = "a text or a list of words"
        if isinstance(item, str):
            return {"text": item}
        if texts and are_texts and all(text.strip() for text in texts):
            return {"tokens": texts}
    elif task.pair:
        wanted = f"a pair of texts ({' + '.join(columns.inputs)})"
        if len(texts) == 2 and are_texts:
            return {"text": texts[0], "text_pair": texts[1]}
    else:
        wanted = "one text"
        if isinstance(item, str):
            return {"text": item}
    raise DataError(f"{where}: task {name!r} wants {wanted}, found {brief(reprlib.repr(item))}")


def _from_columns(row: Mapping[str, Any], task: Task, columns: Columns, where: str) -> Any:
    plain = ("tokens",) if task.kind == "tagging" else ("text", "text_pair")[: 1 + task.pair]
    names = next((names for names in (columns.inputs, plain, ("text",)) if all(n in row for n in names)), None)
    if names is None or (names == ("text",) and task.pair):
        raise DataError(f"{where}: wanted {' + '.join(columns.inputs)}, found {brief(', '.join(row)) or 'nothing'}")
    value = row[names[0]] if len(names) == 1 else [row[name] for name in names]
    # A column of words may be a text with spaces between them, as in training; `text` is plain text.
    return value.split() if task.kind == "tagging" and names != ("text",) and isinstance(value, str) else value


def _asked(item: Any, task: Task, columns: Columns, name: str, where: str) -> Row:
    """A question with its context, or with its choices."""
    trained = Columns(columns.inputs, choices=columns.choices)
    if task.kind == "question_answering":
        plain, wanted = Columns(("question", "context")), "a question and a context"
    else:
        plain = Columns(("text", "text_pair")[: 1 + task.pair], choices=("choices",))
        wanted = f"{'two texts' if task.pair else 'a text'} and the choices"
    if isinstance(item, list | tuple):
        item = _listed(cast("Sequence[Any]", item), plain)
    if not isinstance(item, Mapping):
        raise DataError(f"{where}: task {name!r} wants {wanted}, found {brief(reprlib.repr(item))}")
    row = dict(cast("Mapping[str, Any]", item))
    fitting = next((c for c in (trained, plain) if all(n in row for n in (*c.inputs, *c.choices))), None)
    if fitting is None:
        names = " + ".join((*columns.inputs, *columns.choices))
        raise DataError(f"{where}: wanted {names}, found {brief(', '.join(row)) or 'nothing'}")
    return check_row(row, fitting, task.kind, where)


def _listed(parts: Sequence[Any], plain: Columns) -> Any:
    """Texts in a list -> a row with plain columns, if they are as many as it takes."""
    texts, rest = parts[: len(plain.inputs)], list(parts[len(plain.inputs) :])
    row = dict(zip(plain.inputs, texts, strict=False))
    if not plain.choices:
        return parts if rest or len(texts) < len(plain.inputs) else row
    choices = rest[0] if len(rest) == 1 and isinstance(rest[0], list | tuple) else rest
    return {**row, "choices": choices} if rest else parts
