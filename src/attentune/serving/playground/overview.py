"""The registry -> lines of the task table; what an adapter's metrics.json keeps -> numbers and reliability.

An uploaded folder may hold any JSON as its metrics, so that nothing is taken for granted here: what is not there or is
no number is None.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast

from attentune import store
from attentune.evaluation.calibration import Reliability
from attentune.serving.registry import Served


@dataclass(frozen=True)
class Interval:
    """A mean over seeds with its 95% interval."""

    mean: float
    low: float
    high: float
    seeds: int


@dataclass(frozen=True)
class Line:
    """One task in the table."""

    name: str
    kind: str
    method: str
    bytes: int
    version: str
    metric: str
    split: str
    """Where the scores were measured, the last split there is; "" for none."""
    score: float | None
    interval: Interval | None
    ece: float | None


def line(name: str, served: Served) -> Line:
    """A task as a line of the table; reads its metrics from the disk."""
    version = served.active
    card, metrics = version.entry.card, store.metrics_of(version.entry.folder)
    metric, split = card.task.main_metric, last_split(metrics)
    return Line(
        name,
        card.task.kind,
        card.method,
        version.entry.bytes,
        version.id,
        metric,
        split,
        number(metrics, split, metric),
        _interval(metrics, split, metric),
        number(metrics, "calibration", split, "ece"),
    )


def last_split(metrics: Mapping[str, Any]) -> str:
    """`test` where it was measured, else `validation`, else nothing."""
    return next((name for name in ("test", "validation") if isinstance(metrics.get(name), Mapping)), "")


def number(metrics: Any, *path: str) -> float | None:
    """The number at a path of keys, if there is one."""
    for key in path:
        metrics = cast("Mapping[str, Any]", metrics).get(key) if isinstance(metrics, Mapping) else None
    ok = isinstance(metrics, int | float) and not isinstance(metrics, bool) and math.isfinite(metrics)
    return float(metrics) if ok else None


def reliability(metrics: Mapping[str, Any], split: str) -> dict[str, Reliability]:
    """The bins `as learned` and `calibrated`; empty where the folder keeps none."""
    found: dict[str, Reliability] = {}
    with suppress(KeyError, TypeError, ValueError, AttributeError):
        for shown, key in (("as learned", "before"), ("calibrated", "after")):
            bins = Reliability.from_card(metrics["reliability"][split][key])
            if bins.stated.ndim != 1 or not bins.stated.shape == bins.observed.shape == bins.weight.shape:
                return {}
            found[shown] = bins
    return found


def _interval(metrics: Mapping[str, Any], split: str, metric: str) -> Interval | None:
    mean, low, high = (number(metrics, "seeds", "mean", split, metric, key) for key in ("mean", "low", "high"))
    if mean is None or low is None or high is None:
        return None
    runs = cast("Any", metrics)["seeds"].get("runs")
    return Interval(mean, low, high, len(runs) if isinstance(runs, Mapping) else 0)
