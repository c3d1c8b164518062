"""The tutorials as notebooks: docs/tutorials/NAME.md -> docs/notebooks/NAME.ipynb, so that there is one text.

    python scripts/tutorial_notebooks.py            # write them
    python scripts/tutorial_notebooks.py --check    # say whether they are what would be written; exit code 1 if not

A ```python block becomes a cell, the ```output block after it what the cell has stored; each command of a ```console
block becomes a `%%bash` cell with the output shown below it; all else is prose. The notebooks are not run here:
docs/checks runs them and compares what they have stored.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

DOCS = Path(__file__).resolve().parents[1] / "docs"
TUTORIALS, NOTEBOOKS = DOCS / "tutorials", DOCS / "notebooks"

FENCED = re.compile(r"^```(python|console|output)\n(.*?)^```$\n?", re.MULTILINE | re.DOTALL)
TO_NOTEBOOK = re.compile(r"^As a notebook: .*$\n+", re.MULTILINE)
SIBLING = re.compile(r"\]\(([\w-]+)\.md\)")
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def notebook_of(text: str) -> str:
    """A tutorial -> its notebook, as JSON."""
    cells: list[Any] = []
    prose, *parts = FENCED.split(text)
    cells += prose_of(prose)
    for info, body, after in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        if info == "python":
            cells.append(new_code_cell(body.rstrip("\n")))
        elif info == "output":
            cells[-1].outputs = stored(body)
        else:
            cells += commands_of(body)
        cells += prose_of(after)
    for number, cell in enumerate(cells, 1):
        cell.id = f"cell-{number}"
    book = new_notebook(cells=cells, metadata=METADATA)
    nbformat.validate(book)
    return nbformat.writes(book, indent=1) + "\n"


def prose_of(text: str) -> Iterator[Any]:
    """A cell, if there is anything to say; links between tutorials become links between notebooks."""
    said = SIBLING.sub(r"](\1.ipynb)", TO_NOTEBOOK.sub("", text)).strip()
    if said:
        yield new_markdown_cell(said)


def commands_of(body: str) -> Iterator[Any]:
    """A cell for each `$ command`; one that ends in `&` runs in the background."""
    for part in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]:
        lines = part.splitlines()
        end = next(i for i, line in enumerate(lines) if not line.endswith("\\")) + 1
        command = "\n".join(lines[:end])
        if command.endswith("&"):
            yield new_code_cell(f"%%bash --bg\n{command.removesuffix('&').rstrip()}")
        else:
            yield new_code_cell(f"%%bash\n{command}", outputs=stored("\n".join(lines[end:])))


def stored(text: str) -> list[Any]:
    """What a cell printed."""
    return [new_output("stream", name="stdout", text=f"{text.strip()}\n")] if text.strip() else []


def notebooks() -> dict[Path, str]:
    """Every notebook with its content."""
    pages = [page for page in sorted(TUTORIALS.glob("*.md")) if page.stem != "index"]
    return {NOTEBOOKS / f"{page.stem}.ipynb": notebook_of(page.read_text(encoding="utf-8")) for page in pages}


def differing() -> list[str]:
    """The names of notebooks that are missing, not of a tutorial, or not what its tutorial makes."""
    wanted = notebooks()
    there = {path: path.read_text(encoding="utf-8") for path in NOTEBOOKS.glob("*.ipynb")}
    return sorted(path.name for path in {*wanted, *there} if wanted.get(path) != there.get(path))


def main() -> None:
    """Write or check."""
    if "--check" in sys.argv[1:]:
        found = differing()
        if found:
            sys.exit(f"not what the tutorials make: {', '.join(found)}; run python scripts/tutorial_notebooks.py")
        return
    NOTEBOOKS.mkdir(exist_ok=True)
    wanted = notebooks()
    for old in set(NOTEBOOKS.glob("*.ipynb")) - set(wanted):
        old.unlink()
    for path, content in wanted.items():
        path.write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
