"""A directive that stands for Markdown made from the code while the site is built: nothing is described twice."""

from abc import abstractmethod
from importlib import import_module
from typing import Any

from docutils import nodes
from sphinx.util.docutils import SphinxDirective


class Generated(SphinxDirective):
    """`{name} dotted.path ...`: the Markdown that `markdown` makes of its arguments, headings included."""

    optional_arguments = 9

    @abstractmethod
    def markdown(self) -> str:
        """What stands in the place of the directive."""

    def run(self) -> list[nodes.Node]:
        """Read the Markdown as if it stood on the page."""
        return self.parse_text_to_nodes(self.markdown(), allow_section_headings=True)


def imported(path: str) -> Any:
    """`package.module.name` -> the object."""
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


def table(heads: list[str], rows: list[list[str]]) -> str:
    """A table of Markdown; the cells are Markdown, each on one line."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)


def code(value: object) -> str:
    """As code within a line."""
    text = str(value)
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def prose(text: str) -> str:
    """A help text as Markdown: what it shows between straight backticks stays code, marks of Markdown are plain."""
    pieces = text.split("`")
    if len(pieces) % 2 == 0:
        pieces = [text]
    return "".join(f"`{piece}`" if n % 2 else _plain(piece) for n, piece in enumerate(pieces))


def _plain(text: str) -> str:
    return "".join(f"\\{mark}" if mark in "*_[]{}<>$#\\" else mark for mark in text)
