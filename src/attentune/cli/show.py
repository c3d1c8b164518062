"""What commands print: JSON for programs on stdout, tables for people on stdout, progress on stderr."""

import json
import os
import signal
import sys
import threading
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of text for people.")]


def is_first_process() -> bool:
    """Whether this is the one process of a distributed run that speaks."""
    return os.environ.get("RANK", "0") == "0"


def as_json(value: Any) -> None:
    """One line of JSON on stdout."""
    if is_first_process():
        print(json.dumps(value, ensure_ascii=False, default=str), flush=True)


def progress(line: str) -> None:
    """One line on stderr."""
    if is_first_process():
        print(line, file=sys.stderr, flush=True)


def wait() -> None:
    """Until the process is told to end."""
    told = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: told.set())
    told.wait()


@contextmanager
def resumable(onward: str = "with --resume goes on from the last checkpoint, if there is one yet") -> Generator[None]:
    """Training, or what else takes long: who interrupts it is told how the same command goes on."""
    try:
        yield
    except KeyboardInterrupt:
        progress(f"interrupted; the same command {onward}")
        raise


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]], title: str | None = None) -> None:
    """A table on stdout; numbers stand at the right."""
    if not is_first_process():
        return
    shown = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for i, name in enumerate(columns):
        numbers = bool(rows) and all(isinstance(row[i], int | float) for row in rows)
        shown.add_column(name, justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        shown.add_row(*(cell(value) for value in row))
    Console(highlight=False, markup=False).print(shown)


def count(number: int, noun: str) -> str:
    """1 row, 2 rows."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def cell(value: Any) -> str:
    """A number with four digits after the point, anything else as text."""
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def scores(metrics: Mapping[str, Any]) -> None:
    """Scores by split, a column a split."""
    splits = [name for name in ("validation", "test", "baseline") if name in metrics]
    names = list(dict.fromkeys(name for split in splits for name in metrics[split]))
    table(["", *splits], [[name, *(metrics[split].get(name, "") for split in splits)] for name in names])


def seeds(found: Mapping[str, Any]) -> None:
    """Mean and 95% interval of each score, a column a split."""
    splits = list(found["mean"])
    names = list(dict.fromkeys(name for split in splits for name in found["mean"][split]))
    rows = [[name, *(_interval(found["mean"][split].get(name, {})) for split in splits)] for name in names]
    title = f"mean over {len(found['runs'])} seeds (95% interval); the adapter is that of seed {found['kept']}"
    table(["", *splits], rows, title)


def _interval(value: Mapping[str, float]) -> str:
    around = f" ({value['low']:.4f} to {value['high']:.4f})" if "low" in value else ""
    return f"{value['mean']:.4f}{around}" if value else ""
