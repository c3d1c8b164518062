"""Cells of many forms -> answers in a context, choices of a question, and which of them is right."""

import re
from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any, cast

from attentune.errors import DataError

WHOLE = re.compile(r"-?[0-9]{1,100}")


def answers_in(context: str, value: Any, starts: Any, where: str) -> list[dict[str, Any]]:
    """One cell of answers -> `{"text", "start"}` each, none where there is no answer.

    Forms: `{"text": [...], "answer_start": [...]}`, a list of `{"text", "answer_start"}`, a text or a list of texts;
    `starts` is the cell that says where texts start, if there is one. Without it an answer is taken to stand where its
    text first occurs.
    """
    if isinstance(value, Mapping):
        cell = cast("Mapping[str, Any]", value)
        if "text" not in cell:
            raise DataError(f"{where}: wanted 'text' and 'answer_start', found {', '.join(cell) or 'nothing'}")
        value, starts = cell["text"], cell.get("answer_start", starts)
    found = _listed(value)
    if found and all(isinstance(part, Mapping) for part in found):
        parts = cast("list[Mapping[str, Any]]", found)
        found, starts = [part.get("text") for part in parts], [part.get("answer_start") for part in parts]
    texts = [text for text in found if isinstance(text, str)]
    if len(texts) < len(found):
        wrong = next(text for text in found if not isinstance(text, str))
        raise DataError(f"{where}: wanted the text of an answer, found {shown(wrong)}")
    places = [None] * len(texts) if starts is None else _listed(starts)
    if len(places) != len(texts) and any(text.strip() for text in texts):
        raise DataError(f"{where}: {len(texts)} answers have {len(places)} starts; one for each is needed")
    return [_placed(context, text, place, where) for text, place in zip(texts, places, strict=False) if text.strip()]


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(cast("list[Any]", value)) if isinstance(value, list | tuple) else [value]


def _placed(context: str, text: str, place: Any, where: str) -> dict[str, Any]:
    first = context.find(text)
    if place is None:
        if first < 0:
            raise DataError(f"{where}: the answer {text!r} does not occur in the context")
        return {"text": text, "start": first}
    start = _whole(place)
    if start is None:
        raise DataError(f"{where}: wanted the character where the answer starts, found {shown(place)}")
    if start < 0 or not context.startswith(text, start):
        found = repr(context[max(start, 0) : max(start, 0) + len(text)]) if start < len(context) else "nothing"
        hint = f"; it is at {first}" if first >= 0 else ""
        raise DataError(f"{where}: the answer {text!r} is not at character {start}, {found} is{hint}")
    return {"text": text, "start": start}


def choice_list(value: Any, where: str) -> tuple[list[str], list[Any]]:
    """One cell of choices, a list or `{"text": [...], "label": [...]}` -> the names of the choices, and the choices."""
    names: list[str] = []
    if isinstance(value, Mapping):
        cell = cast("Mapping[str, Any]", value)
        names, value = [str(name) for name in _listed(cell.get("label"))], cell.get("text")
    if not isinstance(value, list | tuple):
        raise DataError(f"{where}: wanted a list of choices, found {shown(value)}")
    return names, list(cast("list[Any]", value))


def choice_texts(cells: Sequence[Any], where: str) -> list[str]:
    """The choices of a row: at least two, each a text (numbers are written out)."""
    if len(cells) < 2:
        raise DataError(f"{where}: wanted at least two choices, found {len(cells)}")
    for i, cell in enumerate(cells, 1):
        wrong = isinstance(cell, bool) or not isinstance(cell, str | int | float) or not str(cell).strip()
        if wrong or (isinstance(cell, float) and not isfinite(cell)):
            raise DataError(f"{where}: wanted a text as choice {i}, found {shown(cell)}")
    return [str(cell) for cell in cells]


def choice_index(value: Any, choices: Sequence[str], names: Sequence[str], where: str) -> int:
    """Which choice a label means: by the choice's text, by its name, by its letter (A, B, ...) or by its index from 0.

    They are tried in this order; `names` are those of the columns or of the data's own labels.
    """
    word = value.strip() if isinstance(value, str) else None
    if word is not None:
        for known in (choices, names):
            texts = [text.strip() for text in known]
            if word in texts:
                return texts.index(word)
        if len(word) == 1 and "A" <= word.upper() < chr(ord("A") + len(choices)):
            return ord(word.upper()) - ord("A")
    index = _whole(value)
    if index is None or not 0 <= index < len(choices):
        raise DataError(
            f"{where}: wanted one of the choices or its index, 0 to {len(choices) - 1}, found {shown(value)}"
        )
    return index


def _whole(value: Any) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        return int(value) if is_whole(value.strip()) else None
    return int(value) if isinstance(value, int) or (isinstance(value, float) and value.is_integer()) else None


def is_whole(text: str) -> bool:
    """Whether a text is a whole number in ASCII digits: isdigit() also holds of '①', which int() does not read."""
    return WHOLE.fullmatch(text) is not None


def shown(value: Any) -> str:
    """A wrong value as errors show it."""
    if value is None or value == "":
        return "nothing"
    return f"{type(value).__name__} {brief(repr(value))}"


def brief(text: str) -> str:
    """Its beginning, where an error says what was found: all of it may be as long as a request."""
    return text[:57] + "..." if len(text) > 60 else text
