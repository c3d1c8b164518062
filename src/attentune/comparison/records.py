"""The files of runs that were done: one JSON each, named after its run and its hash."""

import json
import os
from pathlib import Path
from typing import Any

from attentune.comparison.plan import Run
from attentune.errors import StoreError

Record = dict[str, Any]


def write(folder: Path, run: Run, record: Record) -> Path:
    """Write the file of a run, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{run.name}-{run.hash}.json"
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(record, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(fresh, path)
    return path


def read(folder: Path) -> dict[str, Record]:
    """Hash -> record of every run in the folder.

    Raises:
        StoreError: a file is not JSON.
    """
    return {path.stem.rsplit("-", 1)[-1]: _read_record(path) for path in folder.glob("*.json")}


def _read_record(path: Path) -> Record:
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path} is not JSON: {error}; without it the run is done again") from error
