"""Methods x tasks x learning rates x seeds -> one JSON a run, `report.html` and `report.md`.

    OUTPUT/plan.json            what was asked for last: the report draws this
    OUTPUT/runs/<run>.json      one file a finished run; it is not repeated while its backbone has the same weights
    OUTPUT/report.html, .md     drawn anew at the end of each call

A kill loses the runs under way, one a worker. A run that failed leaves its sentence in its file, for the report, and is
tried again by the next call: what it lacked, memory or a file on one machine, may be there by then.
"""

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from attentune.backbones import MINILM_ID, hub_id
from attentune.comparison import pool
from attentune.comparison.contenders import contender, options_of, recipe_for
from attentune.comparison.plan import Cell, Conditions, Run, Schedule
from attentune.comparison.records import Record, read, write
from attentune.comparison.run import execute
from attentune.comparison.sets import Reading, Set, load_set
from attentune.comparison.weights import current, weighed
from attentune.errors import AttentuneError, ConfigError, StoreError

PLAN, RUNS = "plan.json", "runs"
Counted = list[list[Record]]
"""The records that count of one cell, a list of folds a seed."""


def compare(
    data: Sequence[str],
    methods: Sequence[str],
    output: str | Path,
    conditions: Conditions | None = None,
    *,
    reading: Reading | None = None,
    rates: int = 3,
    seeds: int = 2,
    minutes: float | None = None,
    workers: int = 0,
    ray_address: str | None = None,
    add: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> Schedule:
    """Do every run that is not done yet, and say how far it went.

    `data` names folders, files, hub data sets or `demo:<task>`, all with the columns that `reading` names; `methods`
    contenders. No run begins after `minutes`. So many `workers` are at it at once, each run in a fresh process of this
    machine or, with `ray_address`, of a Ray cluster, whose machines must find data and backbone at the same places.
    With 0 all runs are made in this process, and the memory of each holds what earlier ones left. With `add` the other
    tasks that the folder compares already stay in the plan, each under its own conditions; what they lack is done after
    the tasks that are named.

    Raises:
        AttentuneError: what was asked for cannot be meant, or a worker died.
    """
    if minutes is not None and not minutes >= 0:
        raise ConfigError(f"minutes are 0 at least, found {minutes}")
    sets = [load_set(source, reading or Reading()) for source in data]
    cells = plan(sets, methods, conditions or Conditions(), rates, seeds)
    folder = Path(output).expanduser()
    if add and (folder / PLAN).is_file():
        named = {cell.first.task for cell in cells}
        cells += [cell for cell in read_plan(folder) if cell.first.task not in named]
    records = read(folder / RUNS)
    cells = weighed(cells, records)
    _write_plan(folder, cells)
    schedule = Schedule(cells)
    if minutes is not None:
        schedule.until = time.monotonic() + 60 * minutes
    for key, record in current(records, cells).items():
        if record["attentune"]["validation"] is not None:
            schedule.validation[key] = record["attentune"]["validation"]
    ask = schedule.ask if ray_address is None else lambda: _placed(schedule.ask())
    for run, record in pool.drain(execute, ask, workers, ray_address):
        write(folder / RUNS, run, record)
        schedule.tell(run, record["attentune"]["validation"])
        report(line_of(run, record))
    left = sum(1 for _ in schedule.due())
    if left:
        report(f"time is over: at least {left} runs are left; the same command goes on with them")
    return schedule


def _placed(run: Run | None) -> Run | None:
    """The run with the places of its files, which a worker in another working folder finds, too."""
    if run is None:
        return None
    name = run.conditions.backbone
    # minilm is never a folder, whatever there is of that name.
    return replace(run, source=_at(run.source), backbone_at=None if hub_id(name) == MINILM_ID else _at(name))


def _at(name: str) -> str:
    """The whole path of what is here; the name of what is not: a hub id, or a task of the demo."""
    path = Path(name).expanduser()
    return str(path.absolute()) if path.exists() else name


def plan(sets: Sequence[Set], methods: Sequence[str], conditions: Conditions, rates: int, seeds: int) -> list[Cell]:
    """The cells, task by task."""
    for what, names in (("task", [chosen.name for chosen in sets]), ("contender", list(methods))):
        if not names:
            raise ConfigError(f"nothing to compare: at least one {what} is needed")
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ConfigError(f"two {what}s are named {twice!r}; each has its own name")
    if rates < 1 or seeds < 1:
        raise ConfigError(f"at least one learning rate and one seed are needed, found rates={rates}, seeds={seeds}")
    return [_cell(chosen, name, conditions, rates, seeds) for chosen in sets for name in methods]


def _cell(chosen: Set, name: str, conditions: Conditions, rates: int, seeds: int) -> Cell:
    known = contender(name)
    if chosen.data.kind == "generation":
        raise ConfigError(f"{chosen.name} is generation, which has no contenders here; the other kinds of task have")
    recipe = recipe_for(name, chosen.data.kind, chosen.data.pair, conditions)
    grid = known.rates(recipe, rates)
    first = Run(
        task=chosen.name,
        source=chosen.source,
        rows=chosen.fingerprint,
        contender=name,
        options=options_of(name, recipe),
        rate=grid[0],
        seed=0,
        fold=0,
        folds=chosen.folds,
        conditions=conditions,
        reading=chosen.reading,
    )
    return Cell(first, grid, seeds)


def read_plan(folder: str | Path) -> list[Cell]:
    """The cells that were asked for last in a folder.

    Raises:
        StoreError: there is no plan, or a damaged one.
    """
    path = Path(folder).expanduser() / PLAN
    if not path.is_file():
        raise StoreError(f"no comparison at {folder}: it has no {PLAN}")
    try:
        return [_cell_of(entry) for entry in json.loads(path.read_bytes())]
    except AttentuneError:
        raise
    except Exception as error:  # values of any wrong kind
        raise StoreError(f"{path} is no plan of a comparison: {error}") from error


def whole(counted: Sequence[Sequence[Run]], records: Mapping[str, Record]) -> Counted:
    """The records of runs that count, a list of folds a seed; without seeds that are unfinished or have failed."""
    found = [[records.get(run.hash) for run in folds] for folds in counted]
    kept = [[r for r in folds if r is not None and r["attentune"]["validation"] is not None] for folds in found]
    return [some for some, folds in zip(kept, found, strict=True) if len(some) == len(folds)]


def line_of(run: Run, record: Record) -> str:
    """A run in one line."""
    ours, info = record["attentune"], record["train_info"]
    if ours["validation"] is None:
        return f"{run.name}: failed, {record['run_info']['error_msg']}"
    return (
        f"{run.name}: validation {ours['metric']} {ours['validation']:.4f}, {info['file_size']:,} bytes, "
        f"{info['train_time']:.1f} s"
    )


def _write_plan(folder: Path, cells: Sequence[Cell]) -> None:
    if folder.is_file():
        raise StoreError(f"{folder} is a file; name a folder")
    folder.mkdir(parents=True, exist_ok=True)
    fresh = folder / f"{PLAN}.new"
    fresh.write_text(json.dumps([asdict(cell) for cell in cells], indent=1) + "\n", encoding="utf-8")
    os.replace(fresh, folder / PLAN)


def _cell_of(entry: dict[str, Any]) -> Cell:
    first = entry["first"]
    said: dict[str, Any] = {key: tuple(x) if isinstance(x, list) else x for key, x in first.get("reading", {}).items()}
    run = replace(Run(**first), conditions=Conditions(**first["conditions"]), reading=Reading(**said))
    return Cell(run, tuple(entry["rates"]), int(entry["seeds"]), entry.get("weights"))
