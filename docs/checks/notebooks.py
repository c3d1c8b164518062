"""A notebook runs from top to bottom in a Jupyter kernel; the text that it has stored must be what comes out.

Standard output and the text of a cell's last value are compared, by the rules of blocks.py; pictures, HTML and standard
error are not. As a script it runs one notebook in the folder where it is started.
"""

import re
import sys
from pathlib import Path
from typing import Any

import nbformat
from blocks import compare
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

SECONDS_OF_A_CELL = 300
STYLE = re.compile(r"\x1b\[[0-9;]*m")
"""Kernels ask programs for colours."""


def text_of(cell: Any) -> str:
    """What a code cell prints, which may come in pieces, and gives, as plain text."""
    printed = "".join(out.text for out in cell.outputs if out.output_type == "stream" and out.name == "stdout")
    values = [out.data.get("text/plain", "") for out in cell.outputs if out.output_type == "execute_result"]
    return STYLE.sub("", "\n".join([printed, *values]))


def run_notebook(path: Path) -> None:
    """Run the notebook as stored, without writing it."""
    stored = nbformat.read(path, as_version=4)
    fresh = nbformat.read(path, as_version=4)
    # Not over TCP: two kernels that start at once may choose the same port.
    kernel = AsyncKernelManager(kernel_name="python3", transport="ipc")
    NotebookClient(fresh, timeout=SECONDS_OF_A_CELL, km=kernel).execute()
    for number, (shown, found) in enumerate(zip(stored.cells, fresh.cells, strict=True), 1):
        if shown.cell_type == "code":
            compare(f"{path.name}, cell {number}", text_of(shown).splitlines(), text_of(found))


if __name__ == "__main__":
    run_notebook(Path(sys.argv[1]))
