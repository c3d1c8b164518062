"""README, CONTRIBUTING, and every page and notebook of docs/: each runs offline, in an empty folder and a process."""

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from blocks import excused

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
BUILT = ROOT / "docs" / "_build"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
NOTEBOOKS = sorted((ROOT / "docs").rglob("*.ipynb"))
# tests/test_notebooks.py holds that these notebooks are the tutorials, block for block: they run once, as notebooks.
TWICE = [ROOT / "docs" / "tutorials" / f"{path.stem}.md" for path in (ROOT / "docs" / "notebooks").glob("*.ipynb")]
DOCUMENTS = [path for path in [*PAGES, *NOTEBOOKS] if BUILT not in path.parents and path not in TWICE]
SECONDS_PER_DOCUMENT = 1200


def end_all_with(name: str, value: str) -> None:
    """End what a document has left running: a server that a notebook started outlives its kernel and holds its port."""
    left: list[psutil.Process] = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(name) == value:
                process.terminate()
                left.append(process)
    for process in psutil.wait_procs(left, timeout=20)[1]:
        process.kill()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_document(document: Path, tmp_path: Path) -> None:
    is_page = document.suffix == ".md"
    skipped = excused(document.read_text(encoding="utf-8")) if is_page else []
    assert not skipped, f"write ```python or ```console, so that the block runs: {skipped}"
    work = tmp_path / "work"
    work.mkdir()
    nowhere = "http://127.0.0.1:9"
    environment = os.environ | {
        "HF_HOME": str(tmp_path / "hub"),  # empty: no document may lean on what was downloaded before
        "HF_HUB_OFFLINE": "1",
        "HTTP_PROXY": nowhere,
        "HTTPS_PROXY": nowhere,
        "NO_PROXY": "127.0.0.1,localhost",  # a document may talk to the server that it starts
        "COLUMNS": "120",
        "NO_COLOR": "1",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }
    try:
        done = subprocess.run(
            [sys.executable, HERE / ("blocks.py" if is_page else "notebooks.py"), document],
            cwd=work,
            env=environment,
            capture_output=True,
            text=True,
            timeout=SECONDS_PER_DOCUMENT,
            check=False,
        )
    finally:
        end_all_with("HF_HOME", environment["HF_HOME"])
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
