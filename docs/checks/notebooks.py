"""A notebook runs from top to bottom in a Jupyter kernel; the text that it has stored must be what comes out.

Standard output and the text of a cell's last value are compared, by the rules of blocks.py; pictures, HTML and standard
error are not. As a script it runs one notebook in the folder where it is started.
"""

import sys
from pathlib import Path
from typing import Any

import nbformat
from blocks import compare
from nbclient import NotebookClient

SECONDS_OF_A_CELL = 300


def text_of(cell: Any) -> str:
    """What a code cell prints and gives, as text."""
    streams = [out.text for out in cell.outputs if out.output_type == "stream" and out.name == "stdout"]
    values = [out.data.get("text/plain", "") for out in cell.outputs if out.output_type == "execute_result"]
    return "\n".join([*streams, *values])


def run_notebook(path: Path) -> None:
    """Run the notebook as stored, without writing it."""
    stored = nbformat.read(path, as_version=4)
    fresh = nbformat.read(path, as_version=4)
    NotebookClient(fresh, timeout=SECONDS_OF_A_CELL, kernel_name="python3").execute()
    for number, (shown, found) in enumerate(zip(stored.cells, fresh.cells, strict=True), 1):
        if shown.cell_type == "code":
            compare(f"{path.name}, cell {number}", text_of(shown).splitlines(), text_of(found))


if __name__ == "__main__":
    run_notebook(Path(sys.argv[1]))
