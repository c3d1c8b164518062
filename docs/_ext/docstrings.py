"""Docstrings of this project are plain text with `code` in backticks and indented formulas; autodoc reads RST."""

import re
from collections.abc import Iterator
from typing import Any

from sphinx.application import Sphinx
from sphinx.util.typing import ExtensionMetadata

CODE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
SPECIAL = re.compile(r"([*|\\]|(?<=\w)_(?!\w))")
RAISED = re.compile(r" {4}(\w+): (.*)")


def escaped(text: str) -> str:
    """A line of prose: `code` doubled, what RST would read as markup escaped."""
    first, *rest = CODE.split(text)
    found = [SPECIAL.sub(r"\\\1", first)]
    for n, piece in enumerate(rest):
        # A word that follows code at once, `None`s, ends the markup only after an escaped space.
        prose = SPECIAL.sub(r"\\\1", piece)
        found.append(rf"\ {prose}" if n % 2 and re.match(r"\w", prose) else prose if n % 2 else f"``{piece}``")
    return "".join(found)


def raised(lines: list[str]) -> Iterator[str]:
    """What stands under `Raises:` as fields."""
    for line in lines:
        found = RAISED.fullmatch(line)
        yield f":raises {found[1]}: {escaped(found[2])}" if found else escaped(line)


def restructured(text: str) -> list[str]:
    """A plain docstring as RST: indented paragraphs and drawn trees are shown as they stand."""
    prose, _, errors = text.partition("Raises:\n")
    found: list[str] = []
    for paragraph in prose.rstrip().split("\n\n"):
        lines = paragraph.splitlines()
        if found and all(line.startswith("    ") for line in lines):
            found += ["::", "", *lines, ""]
        elif any("├──" in line for line in lines):
            found += ["::", "", *(f"    {line}" for line in lines), ""]
        else:
            found += [*map(escaped, lines), ""]
    return [*found, *raised(errors.splitlines())]


def setup(app: Sphinx) -> ExtensionMetadata:
    """Rewrite every docstring that autodoc shows."""

    def rewrite(_app: Sphinx, _what: str, _name: str, _object: Any, _options: Any, lines: list[str]) -> None:
        lines[:] = restructured("\n".join(lines))

    app.connect("autodoc-process-docstring", rewrite)
    return {"parallel_read_safe": True}
