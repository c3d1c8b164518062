"""Raw rows -> checked rows of one kind of task, or one clear error that names the split and the row.

A checked row is `{"text", ["text_pair"], "label"}`, `{"tokens", "tags"}`, `{"question", "context", "answers"}` (a list
of `{"text", "start"}`, empty where there is no answer) or `{"text", ["text_pair"], "choices", "label"}`. A label is a
class name, a list of class names (multilabel), a number (regression), the index of a choice or a list of reference
texts (generation). Rows to predict have no label, tags or answers.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

from attentune.errors import DataError
from attentune.evaluation.metrics import PREFIXES, is_bio
from attentune.tasks.cells import answers_in, choice_index, choice_list, choice_texts, is_whole, shown
from attentune.tasks.columns import Columns, is_number
from attentune.tasks.sources import Row


def check_rows(rows: Sequence[Row], columns: Columns, kind: str, split: str = "the data") -> list[Row]:
    """Rows of a table -> rows of the task; labels are read where `columns.label` names their column."""
    checked = [check_row(row, columns, kind, f"{split} row {i}") for i, row in enumerate(rows, 1)]
    if kind == "multiple_choice" and columns.label is not None:
        check_read_alike([row[columns.label] for row in rows], checked, f"{split}, column {columns.label!r}")
    return checked


def check_row(row: Row, columns: Columns, kind: str, where: str) -> Row:
    """One row of a table -> a row of the task; `where` stands in errors."""
    parsers = {"tagging": _tagged, "question_answering": _answered, "multiple_choice": _chosen}
    checked = parsers.get(kind, _labelled)(row, columns, kind, where)
    check_texts(checked, where)
    return checked


def check_texts(row: Row, where: str) -> None:
    """No text of a row of a task, nor in its lists, holds half a character, which no tokenizer and no file takes."""
    texts = [part for v in row.values() for part in (cast("list[Any]", v) if isinstance(v, list) else [v])]
    try:
        "".join(text for text in texts if isinstance(text, str)).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise DataError(f"{where}: wanted a text in UTF-8, found half a character, {half!r}") from error


def _labelled(row: Row, columns: Columns, kind: str, where: str) -> Row:
    keys = ("text", "text_pair")
    out: Row = {key: _text(row, name, where) for key, name in zip(keys, columns.inputs, strict=False)}
    if columns.label is not None:
        out["label"] = LABEL_READERS[kind](_cell(row, columns.label, where), f"{where}, column {columns.label!r}")
    return out


def _tagged(row: Row, columns: Columns, kind: str, where: str) -> Row:
    tokens = _words(_cell(row, columns.inputs[0], where), f"{where}, column {columns.inputs[0]!r}")
    if columns.label is None:
        return {"tokens": tokens}
    tags = _words(_cell(row, columns.label, where), f"{where}, column {columns.label!r}")
    if len(tokens) != len(tags):
        raise DataError(f"{where} has {len(tokens)} tokens and {len(tags)} tags; one tag for each token is needed")
    return {"tokens": tokens, "tags": tags}


def _answered(row: Row, columns: Columns, kind: str, where: str) -> Row:
    question, context = (_text(row, name, where) for name in columns.inputs)
    out: Row = {"question": question.strip(), "context": context}
    if columns.label is not None:
        starts = None if columns.start is None else _cell(row, columns.start, where)
        place = f"{where}, column {columns.label!r}"
        out["answers"] = answers_in(context, _cell(row, columns.label, where), starts, place)
    return out


def _chosen(row: Row, columns: Columns, kind: str, where: str) -> Row:
    keys = ("text", "text_pair")
    out: Row = {key: _text(row, name, where) for key, name in zip(keys, columns.inputs, strict=False)}
    names, cells = columns.choices, [_cell(row, name, where) for name in columns.choices]
    if len(names) == 1:
        names, cells = choice_list(cells[0], f"{where}, column {names[0]!r}")
    out["choices"] = choice_texts(cells, where)
    if columns.label is not None:
        value = _cell(row, columns.label, where)
        out["label"] = choice_index(value, out["choices"], names, f"{where}, column {columns.label!r}")
    return out


def check_read_alike(values: Sequence[Any], checked: Sequence[Row], where: str) -> None:
    """Numbers that stand as texts in a column of labels name choices in all rows, or are indices in all.

    Raises:
        DataError: they differ, so that one of the readings is wrong; it names a row of each.
    """
    named: tuple[int, str] | None = None
    counted: tuple[int, str] | None = None
    for i, (value, row) in enumerate(zip(values, checked, strict=True), 1):
        word = value.strip() if isinstance(value, str) else ""
        if not is_whole(word):
            continue
        if row["label"] != int(word):
            named = named or (i, word)
        elif row["choices"][row["label"]].strip() != word:
            counted = counted or (i, word)
    if named and counted:
        raise DataError(
            f"{where}: row {named[0]}'s {named[1]!r} is the name of a choice, and row {counted[0]}'s {counted[1]!r} "
            "can only be an index from 0; name all choices, or give letters (A, B, ...) or indices as JSON numbers"
        )


def _cell(row: Row, name: str, where: str) -> Any:
    if name not in row:
        raise DataError(f"{where} has no column {name!r}; it has {', '.join(row)}")
    return row[name]


def _text(row: Row, name: str, where: str) -> str:
    value = _cell(row, name, where)
    if not isinstance(value, str):
        raise DataError(f"{where}, column {name!r}: wanted a text, found {shown(value)}")
    if not value.strip():
        raise DataError(f"{where}, column {name!r}: the text is empty")
    return value


def _words(value: Any, where: str) -> list[str]:
    if isinstance(value, str):
        value = value.split()
    if not isinstance(value, list):
        raise DataError(f"{where}: wanted a list of words, found {shown(value)}")
    words = cast("list[Any]", value)
    if not words:
        raise DataError(f"{where}: the list is empty")
    for word in words:
        if not isinstance(word, str) or not word.strip():
            raise DataError(f"{where}: wanted words, found {shown(word)}")
    return words


def class_name(value: Any, where: str) -> str:
    """One label cell -> its class name: texts as they are, whole numbers and booleans as text."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str) and value.strip():
        return value.strip()
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return str(int(value))
    raise DataError(f"{where}: wanted a class, found {shown(value)}")


def class_names(value: Any, where: str) -> list[str]:
    """One label cell -> its class names: a list, or one text with '|' between names; none is allowed."""
    if isinstance(value, str):
        value = [part for part in value.split("|") if part.strip()]
    if not isinstance(value, list):
        raise DataError(f"{where}: wanted a list of classes or 'a|b', found {shown(value)}")
    return sorted({class_name(part, where) for part in cast("list[Any]", value)})


def number(value: Any, where: str) -> float:
    """One label cell -> a finite number."""
    if not is_number(value):
        raise DataError(f"{where}: wanted a number, found {shown(value)}")
    return float(value)


def references(value: Any, where: str) -> list[str]:
    """One label cell -> its reference texts: one text, or a list of them."""
    found = cast("list[Any]", value) if isinstance(value, list) else [value]
    if not found:
        raise DataError(f"{where}: wanted a text or a list of texts, found an empty list")
    for text in found:
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"{where}: wanted a text or a list of texts, found {shown(text)}")
    return found


LABEL_READERS: dict[str, Callable[[Any, str], Any]] = {
    "classification": class_name,
    "multilabel": class_names,
    "regression": number,
    "generation": references,
}
OPEN = ("regression", "question_answering", "multiple_choice", "generation")
"""Kinds without classes."""


def classes_of(rows: Iterable[Row], kind: str) -> tuple[str, ...]:
    """The class names (tags) that occur, in order of name, whole numbers in order of size, O first."""
    if kind in OPEN:
        return ()
    names: set[str] = set()
    for row in rows:
        found = row["tags"] if kind == "tagging" else row["label"]
        names.update([found] if isinstance(found, str) else found)
    if all(map(is_whole, names)):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names, key=lambda name: (name != "O" or kind != "tagging", name)))


def tags_of(names: Sequence[str], used: Sequence[str]) -> tuple[str, ...]:
    """The tags of a task: the `names` that the data declare, of which `used` occur in rows.

    One tag outside the BIO family would make every word a span, and the F1 of entities that of words. So where the
    family is used, what is declared outside it is left out; a DataError names the first such tag that is used.
    """
    entity = next((tag for tag in used if tag[:2] in PREFIXES), None)
    if entity is None:
        return tuple(names)
    others = {tag for tag in names if not is_bio([tag])}
    other = next((tag for tag in used if tag in others), None)
    if other is not None:
        raise DataError(
            f"tag {other!r} is neither O nor begins with one of {', '.join(PREFIXES)} as {entity!r} does; write L- as "
            "E-, U- as S- and M- as I-, or give all tags such a beginning, or none"
        )
    return tuple(tag for tag in names if tag not in others)


def check_known(
    rows: Iterable[Row], kind: str, labels: Sequence[str], split: str, out_of_scope: str | None = None
) -> None:
    """Every class of these rows is among `labels`, or is the one `out_of_scope`; a DataError names the first other row.

    The rows are those of the source, from its first one on: it is their number that is named.
    """
    if kind in OPEN:
        return
    known = {*labels, out_of_scope}
    for i, row in enumerate(rows, 1):
        found = row["tags"] if kind == "tagging" else row["label"]
        for name in [found] if isinstance(found, str) else found:
            if name not in known:
                raise DataError(f"{split} row {i} has label {name!r}, which training does not know: {_some(labels)}")


def _some(names: Sequence[str], limit: int = 20) -> str:
    return ", ".join(names[:limit]) + (f", ... ({len(names)} in all)" if len(names) > limit else "")
