"""The `recipes` directive: the recipes that ship, by folder."""

from collections import defaultdict
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

from generated import Generated, code, table
from sphinx.application import Sphinx
from sphinx.util.typing import ExtensionMetadata


def rows(home: Path) -> Iterator[list[str]]:
    """A folder and the names in it, a row each."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in sorted(home.rglob("*.toml")):
        found[path.parent.relative_to(home).as_posix()].append(path.stem)
    for folder, names in found.items():
        yield [code(folder), ", ".join(code(name) for name in names)]


class Recipes(Generated):
    """`{recipes}`."""

    def markdown(self) -> str:
        """The table."""
        return table(["folder", "recipes"], list(rows(Path(str(files("attentune") / "recipes")))))


def setup(app: Sphinx) -> ExtensionMetadata:
    """Register the directive."""
    app.add_directive("recipes", Recipes)
    return {"parallel_read_safe": True}
