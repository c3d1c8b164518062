"""JSON -> rows of plain values, as they stand there: a text that looks like a date stays a text."""

import json
import re
import sys
from typing import Any, cast

from attentune.errors import DataError

HALF = re.compile(r"\\u[dD][89a-fA-F]")
"""How each half of a character is written; the first half and the second one in a row are that character."""


def rows_in(text: str, where: str) -> list[dict[str, Any]]:
    """A list of rows, or a row a line; `where` stands in errors. A text is a row of its own, with the column `text`.

    All rows get the columns of all, with None where they lack one.

    Raises:
        DataError: it is no JSON, a row is no object or names a column twice, or a text holds half a character.
    """
    found: list[tuple[str, Any]]
    if text.lstrip().startswith("["):
        found = [(f"row {i}", value) for i, value in enumerate(_parsed(text, where), 1)]
    else:
        lines = [(i, line) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
        found = [(f"line {i}", _parsed(line, where, i)) for i, line in lines]
    rows = [_row(value, f"{where}, {place}") for place, value in found]
    names = dict.fromkeys(name for row in rows for name in row)
    return [{name: row.get(name) for name in names} for row in rows]


def _parsed(text: str, where: str, line: int | None = None) -> Any:
    """What a text means: the whole file, or one line of it."""
    place = where if line is None else f"{where}, line {line}"
    try:
        value = json.loads(text, object_pairs_hook=_object)
        if HALF.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise DataError(
            f"cannot read {where}, line {line or error.lineno}, as JSON: {error.msg} at column {error.colno}; "
            "wanted a list of rows, or a row a line"
        ) from error
    except UnicodeEncodeError as error:
        raise DataError(f"{place}: wanted a text, found half a character, {error.object[error.start]!r}") from error
    except ValueError as error:
        most = sys.get_int_max_str_digits()
        raise DataError(f"cannot read {place}, as JSON: a whole number has more than {most} digits") from error
    except RecursionError as error:
        raise DataError(f"cannot read {place}, as JSON: it is nested too deeply") from error
    except _TwiceError as error:
        raise DataError(f"{place}: a row has two columns {str(error)!r}; give each its own name") from error
    return value


class _TwiceError(Exception):
    """An object has two members of this name."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise _TwiceError(next(name for name in names if names.count(name) > 1))
    return found


def _row(value: Any, where: str) -> dict[str, Any]:
    if isinstance(value, str):
        return {"text": value}
    if not isinstance(value, dict):
        raise DataError(f"{where}: wanted a row, as an object, found {type(value).__name__}")
    return cast("dict[str, Any]", value)
