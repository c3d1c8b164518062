"""A page for people: pictures and tables in one HTML file that needs nothing else."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment


@dataclass(frozen=True)
class Picture:
    """An <svg> element with what there is to see."""

    title: str
    note: str
    svg: str


@dataclass(frozen=True)
class Table:
    """Rows of a name and numbers."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    note: str = ""
    meanings: Mapping[str, str] = field(default_factory=dict[str, str])
    """Name of a row -> what it is, shown below it."""


def page(title: str, note: str, pictures: Sequence[Picture] = (), tables: Sequence[Table] = ()) -> str:
    """The HTML text; everything but the pictures is escaped."""
    template = files("attentune.evaluation").joinpath("page.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, trim_blocks=True)
    return environment.from_string(template).render(title=title, note=note, pictures=pictures, tables=tables)


def write(file: Path, text: str) -> None:
    """Write the page as a whole or not at all."""
    fresh = file.with_name(f".{file.name}.new")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(file)
