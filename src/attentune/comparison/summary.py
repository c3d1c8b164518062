"""Finished runs -> what a report says of them: a line a contender and task, paired differences, ranks, curves."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from scipy.stats import rankdata

from attentune.comparison.compare import RUNS, Counted, read_plan, whole
from attentune.comparison.contenders import contender
from attentune.comparison.plan import Cell, Conditions
from attentune.comparison.records import Record, read
from attentune.comparison.weights import current
from attentune.evaluation.statistics import Array, Estimate, bootstrap

REFERENCE = "lora"
"""Whom the others are measured against, where it takes part; else the best."""


@dataclass(frozen=True)
class Line:
    """One contender on one task."""

    contender: str
    shown: str
    rate: str
    """The chosen learning rate, or what a probe chose."""
    seeds: int
    score: Estimate
    """Of the test rows, the mean over seeds."""
    validation: float
    against: Estimate | None
    """Its score minus that of the reference, on the same rows and seeds; None of the reference itself."""
    bytes: int
    trained: int
    seconds: float
    """Of training with its validations: of the processor, or of the clock where a GPU did the work."""
    memory: int
    """Peak bytes of the training process (of the GPU where there is one)."""
    latency: dict[str, dict[str, float]]
    """Batch -> milliseconds `tuned`, `bare`, and their `ratio`."""
    ece: float | None
    """Expected calibration error of the test rows; None for a kind of task that states no probabilities."""
    ece_after: float | None
    """With the temperature that was fitted on validation."""


@dataclass(frozen=True)
class Curve:
    """Validation score by learning rate, of seed 0, the mean over folds."""

    contender: str
    shown: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class TaskSummary:
    """All contenders on one task, best first."""

    name: str
    metric: str
    conditions: Conditions
    sizes: dict[str, int]
    folds: int
    tested: int
    """Test rows, of all folds together."""
    set_size: int | None
    """Rows that the task has; None where older versions have not written it down."""
    reference: str
    lines: tuple[Line, ...]
    pairs: dict[str, dict[str, Estimate]]
    """a -> b -> score of a minus score of b, on the same rows and seeds."""
    curves: tuple[Curve, ...]

    def line(self, name: str) -> Line | None:
        """The line of a contender, if it is finished."""
        return next((line for line in self.lines if line.contender == name), None)


@dataclass(frozen=True)
class Summary:
    """A whole comparison, as far as it is done."""

    tasks: tuple[TaskSummary, ...]
    contenders: tuple[str, ...]
    """Those that are finished on some task: by their ranks, else as they come."""
    ranked: tuple[str, ...]
    """The tasks that every contender has. Over others a mean rank would depend on who else took part."""
    ranks: dict[str, float]
    """Contender -> mean rank over `ranked`, best first; empty without such a task."""
    failures: tuple[tuple[str, str], ...]
    """Run, sentence; it is tried again at the next start."""
    done: int
    """Runs with a score."""
    left: int
    """Runs that nobody has tried; those of further seeds are counted when the rate is known."""
    meta: dict[str, Any] = field(default_factory=dict[str, Any])
    """Packages and machine of a run."""


def summarise(folder: str | Path) -> Summary:
    """What the runs of a comparison's folder say.

    Raises:
        StoreError: there is no comparison.
    """
    cells = read_plan(folder)
    records = current(read(Path(folder).expanduser() / RUNS), cells)
    validation = {key: record["attentune"]["validation"] for key, record in records.items()}
    tasks: list[TaskSummary] = []
    for name in dict.fromkeys(cell.first.task for cell in cells):
        here = [cell for cell in cells if cell.first.task == name]
        counted = {cell.first.contender: whole(cell.counted(validation), records) for cell in here}
        if any(counted.values()):
            curves = [curve for cell in here if (curve := _curve(cell, validation))]
            tasks.append(_task(here[0], {k: v for k, v in counted.items() if v}, curves))
    needed = {run.hash: run for cell in cells for run in cell.needed(validation)}
    there = [key for key in needed if key in records]
    failed = [key for key in there if validation[key] is None]
    contenders = dict.fromkeys(line.contender for task in tasks for line in task.lines)
    ranked = [task for task in tasks if len(task.lines) == len(contenders)]
    ranks = _ranks(list(contenders), ranked)
    return Summary(
        tasks=tuple(tasks),
        contenders=tuple(ranks or contenders),
        ranked=tuple(task.name for task in ranked),
        ranks=ranks,
        failures=tuple((needed[key].name, records[key]["run_info"]["error_msg"]) for key in failed),
        done=len(there) - len(failed),
        left=len(needed) - len(there),
        meta=records[there[0]]["meta_info"] if there else {},
    )


def _task(cell: Cell, counted: dict[str, Counted], curves: Sequence[Curve]) -> TaskSummary:
    rows = {name: {_key(folds)["seed"]: _rows(folds) for folds in seeds} for name, seeds in counted.items()}
    every = sorted({seed for runs in rows.values() for seed in runs})
    # What no seed decides gives the same with every one.
    rows |= {
        name: dict.fromkeys(every, rows[name][0]) for name, seeds in counted.items() if _key(seeds[0])["rate"] is None
    }
    first = next(iter(counted.values()))[0][0]["attentune"]
    form = first["rows"]["form"]
    drawn = {name: bootstrap(form, list(runs.values()), seeds=list(runs)) for name, runs in rows.items()}
    scores = {name: found.estimate() for name, found in drawn.items()}
    order = sorted(scores, key=lambda name: -scores[name].value)
    reference = REFERENCE if REFERENCE in scores else order[0]
    pairs = {a: {b: (drawn[a] - drawn[b]).estimate() for b in order if a != b} for a in order}
    return TaskSummary(
        name=cell.first.task,
        metric=first["metric"],
        conditions=cell.first.conditions,
        sizes=first["sizes"],
        folds=cell.first.folds,
        tested=drawn[order[0]].rows,
        set_size=first.get("set_size"),
        reference=reference,
        lines=tuple(_line(name, counted[name], scores[name], pairs[name].get(reference)) for name in order),
        pairs=pairs,
        curves=tuple(curves),
    )


def _key(folds: Sequence[Record]) -> dict[str, Any]:
    return folds[0]["attentune"]["key"]


def _rows(folds: Sequence[Record]) -> Array:
    """Statistics of all test rows, [N,S]."""
    return np.array([row for record in folds for row in record["attentune"]["rows"]["values"]], dtype=float)


def _line(name: str, seeds: Counted, score: Estimate, against: Estimate | None) -> Line:
    records = [record for folds in seeds for record in folds]
    ours, info = [record["attentune"] for record in records], [record["train_info"] for record in records]
    rate = ours[0]["key"]["rate"]
    return Line(
        contender=name,
        shown=contender(name).shown,
        rate=ours[0]["note"] if rate is None else f"{rate:g}",
        seeds=len(seeds),
        score=score,
        validation=mean(one["validation"] for one in ours),
        against=against,
        bytes=info[0]["file_size"],
        trained=info[0]["num_trainable_params"],
        seconds=mean(map(_seconds, records)),
        memory=max(one["accelerator_memory_max"] for one in info) or max(one["memory_max"] for one in ours),
        latency={batch: _mean_latency(batch, ours) for batch in ours[0]["latency_ms"]},
        ece=_mean_error("ece", ours),
        ece_after=_mean_error("ece_after", ours),
    )


def _seconds(record: Record) -> float:
    if record["meta_info"]["system_info"]["accelerator"] == "none":
        return record["attentune"]["cpu_time"]
    return record["train_info"]["train_time"]


def _mean_latency(batch: str, ours: Sequence[dict[str, Any]]) -> dict[str, float]:
    return {key: mean(one["latency_ms"][batch][key] for one in ours) for key in ours[0]["latency_ms"][batch]}


def _mean_error(name: str, ours: Sequence[dict[str, Any]]) -> float | None:
    found = [one["calibration"][name] for one in ours if one["calibration"] is not None]
    return mean(found) if found else None


def _curve(cell: Cell, validation: dict[str, float | None]) -> Curve | None:
    points: list[tuple[float, float]] = []
    for rate in cell.rates:
        found = [validation.get(run.hash) for run in cell.runs(rate, 0)]
        if rate is not None and None not in found:
            points.append((rate, mean(score for score in found if score is not None)))
    name = cell.first.contender
    return Curve(name, contender(name).shown, tuple(sorted(points))) if points else None


def _ranks(names: Sequence[str], tasks: Sequence[TaskSummary]) -> dict[str, float]:
    if not tasks:
        return {}
    scores = np.array([[line.score.value for task in tasks if (line := task.line(name))] for name in names])
    # 1 is the best; those of equal score share the mean of their ranks.
    ranks: list[float] = rankdata(-scores, axis=0).mean(1).tolist()
    return dict(sorted(zip(names, ranks, strict=True), key=lambda entry: entry[1]))
