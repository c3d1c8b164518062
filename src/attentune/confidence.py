"""How far an answer can be trusted: fitted on validation rows, kept in the task card, applied to every answer.

    logits of validation rows --calibrate--> Calibration (in the card)
    logits + Calibration      --answers-->   answers: calibrated `score` and `probabilities`, and where asked for
                                             `abstained`, `prediction_set` or `interval`, `out_of_scope`
    logits of labelled rows   --judge-->     Judgement: scores, calibration error, coverage, risk

The mathematics lies in `evaluation`. The temperature and the quantiles come from the same validation rows; that bends
the promise by the one number that the temperature is, and by the choice of the best epoch. What is kept of the promise
is therefore measured on the test split.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from attentune.errors import ConfigError, StoreError
from attentune.evaluation import calibration as maths
from attentune.evaluation import conformal, scope, selective
from attentune.evaluation.calibration import Reliability
from attentune.evaluation.metrics import Scores
from attentune.evaluation.selective import RiskCoverage
from attentune.evaluation.statistics import Estimate
from attentune.tasks import Answer, Features, Task
from attentune.tasks.by_row import main_score
from attentune.tasks.sources import Row
from attentune.tasks.task import Events, Logits, WithSets

ROWS = 1000
"""Validation rows, at most, that are decoded at one temperature after the other to find the best."""
SMALLEST = 1e-12
"""Scores are kept this far from 0 and 1."""


@dataclass(frozen=True)
class Scope:
    """When a text is not for the task: its `score` (a name in `evaluation.scope.SCORES`) is at least `threshold`."""

    score: str
    threshold: float
    label: str | None = None
    """The class of rows outside in the data, if they have one."""

    def of(self, logits: Sequence[Logits]) -> np.ndarray[Any, Any]:
        """Logits [C] of N rows -> how strange each is [N]."""
        return scope.SCORES[self.score](np.stack(logits))


@dataclass(frozen=True)
class Calibration:
    """What a task card keeps of the validation rows; the default is that of an adapter that was never calibrated."""

    temperature: float = 1.0
    rows: int = 0
    """Validation rows behind it."""
    quantiles: Mapping[float, float] = field(default_factory=dict[float, float])
    """Promised coverage -> the strangeness up to which an answer belongs to the set (for a number: the distance)."""
    scope: Scope | None = None

    def to_card(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "temperature": self.temperature,
            "rows": self.rows,
            "quantiles": {str(coverage): value for coverage, value in self.quantiles.items()},
            "scope": None if self.scope is None else vars(self.scope),
        }

    @classmethod
    def from_card(cls, card: Mapping[str, Any]) -> Self:
        """The way back; what the card does not have is not calibrated."""
        found = card.get("scope")
        if found is not None and found["score"] not in scope.SCORES:
            raise StoreError(
                f"the task card names the scope score {found['score']!r}; there are {', '.join(scope.SCORES)}"
            )
        temperature = float(card.get("temperature", 1.0))
        if not 0 < temperature < math.inf:
            raise StoreError(f"the card has the temperature {temperature}; wanted is a finite number above 0")
        return cls(
            temperature=temperature,
            rows=int(card.get("rows", 0)),
            quantiles={float(coverage): float(value) for coverage, value in card.get("quantiles", {}).items()},
            scope=None if found is None else Scope(found["score"], float(found["threshold"]), found["label"]),
        )

    def quantile(self, coverage: float) -> float:
        """The quantile of a promised coverage, or a ConfigError that names the promises that the card can keep."""
        if coverage not in self.quantiles:
            there = ", ".join(map(str, self.quantiles)) or "none, its validation split was too small"
            raise ConfigError(f"no prediction sets with coverage {coverage}; the task card has {there}")
        return self.quantiles[coverage]


@dataclass(frozen=True)
class Labelled:
    """Labelled rows with their logits, and the logits of rows that are out of scope."""

    logits: Sequence[Logits]
    features: Sequence[Features]
    rows: Sequence[Row]
    outside: Sequence[Logits] = ()


@dataclass(frozen=True)
class Judgement:
    """How good an adapter is on labelled rows, and how well it knows."""

    scores: Scores
    """The scores of the kind of task."""
    trust: Scores
    """`ece`, `ece_mass`, `brier`, `nll`, and each with `_before` for temperature 1; `aurc` and `risk_at_90` (the share
    of wrong answers among the surest 90 %); `answered` and `risk` where abstention was asked for; `set_coverage_90` and
    `set_size_90` for each promise (for a number the width of the interval); `scope_*` where rows outside were given.
    """
    before: Reliability | None = None
    after: Reliability | None = None
    curve: RiskCoverage | None = None
    main: Estimate | None = None
    """The main score of the kind with its 95% interval over rows, where it has one."""


def calibrate(
    task: Task, validation: Labelled, scope_label: str | None = None, false_alarms: float | None = None
) -> Calibration:
    """Fit everything on labelled validation rows.

    The out-of-scope threshold needs rows outside, or `false_alarms`, the share of rows inside that it may flag; with
    both, `false_alarms` decides.
    """
    temperature = _temperature(task, validation)
    quantiles: dict[float, float] = {}
    if isinstance(task, WithSets):
        found = task.decode(validation.logits, validation.features, temperature)
        strange = [task.strangeness(a, row) for a, row in zip(found, validation.rows, strict=True)]
        quantiles = conformal.quantiles(strange)
    return Calibration(temperature, len(validation.rows), quantiles, _scope(validation, scope_label, false_alarms))


def _temperature(task: Task, validation: Labelled) -> float:
    events = task.events(validation.logits, validation.features)
    if events is not None:
        return maths.fit_temperature(*events)
    if not task.has_score:
        return 1.0
    step = -(-len(validation.rows) // ROWS)
    part = Labelled(validation.logits[::step], validation.features[::step], validation.rows[::step])
    return maths.fit(lambda t: len(part.rows) * maths.log_loss(*by_score(task, part, t)), precision=1e-3)


def stated(task: Task, given: Labelled, temperature: float) -> Events | None:
    """What the answers state at a temperature, as logits, and what is true: see `evaluation.calibration`.

    Where a task has no `events` but a score, scores are judged by whether the answers are right. None: the task states
    no probabilities.
    """
    events = task.events(given.logits, given.features)
    if events is not None:
        return events[0] / temperature, events[1]
    return by_score(task, given, temperature) if task.has_score else None


def by_score(task: Task, given: Labelled, temperature: float) -> Events:
    """The scores of answers as logits [N,1], and whether the answers are right [N,1]."""
    found = task.decode(given.logits, given.features, temperature)
    score = np.clip([[a["score"]] for a in found], SMALLEST, 1 - SMALLEST)
    right = [[task.is_right(a, row)] for a, row in zip(found, given.rows, strict=True)]
    return np.log(score) - np.log1p(-score), np.array(right, dtype=float)


def check_scope(task: Task, false_alarms: float | None) -> None:
    """A ConfigError where a task cannot turn away this share of validation rows."""
    if false_alarms is not None:
        selective.check_share("false_alarms", false_alarms)
        if task.kind != "classification":
            raise ConfigError(f"out-of-scope texts are told by the scores of classes, which {task.kind} does not have")


def _scope(validation: Labelled, label: str | None, false_alarms: float | None) -> Scope | None:
    if false_alarms is None and not validation.outside:
        return None
    inside = np.stack(validation.logits)
    outside = np.stack(validation.outside) if validation.outside else None
    name = "energy" if outside is None else scope.choose_score(inside, outside)
    score = scope.SCORES[name]
    if false_alarms is not None or outside is None:
        return Scope(name, scope.threshold_without(score(inside), false_alarms or 0.0), label)
    return Scope(name, scope.threshold(score(inside), score(outside)), label)


def check_wishes(task: Task, calibration: Calibration, abstain_at: float | None, coverage: float | None) -> None:
    """A ConfigError where a task cannot abstain, or cannot keep the promised coverage."""
    if abstain_at is not None:
        selective.check_share("abstain_at", abstain_at)
        if not task.has_score:
            raise ConfigError(f"an answer of {task.kind} has no probability to abstain at")
    if coverage is not None:
        if not isinstance(task, WithSets):
            raise ConfigError(f"there are no prediction sets for {task.kind}")
        calibration.quantile(coverage)


def answers(
    task: Task,
    calibration: Calibration,
    logits: Sequence[Logits],
    features: Sequence[Features],
    abstain_at: float | None = None,
    coverage: float | None = None,
) -> list[Answer]:
    """Logits a row -> answers, with calibrated probabilities and what was asked for."""
    check_wishes(task, calibration, abstain_at, coverage)
    found = task.decode(logits, features, calibration.temperature)
    if abstain_at is not None:
        found = [{**a, "abstained": a["score"] < abstain_at} for a in found]
    if coverage is not None and isinstance(task, WithSets):
        found = [task.with_set(a, calibration.quantile(coverage)) for a in found]
    if calibration.scope is not None and found:
        strange = calibration.scope.of(logits)
        flags = strange >= calibration.scope.threshold
        found = [
            {**a, "out_of_scope": bool(flag), "out_of_scope_score": float(score)}
            for a, flag, score in zip(found, flags, strange, strict=True)
        ]
    return found


def judge(task: Task, calibration: Calibration, given: Labelled, abstain_at: float | None = None) -> Judgement:
    """Score labelled rows, and how well the answers know what they are worth."""
    check_wishes(task, calibration, abstain_at, None)
    found = task.decode(given.logits, given.features, calibration.temperature)
    trust: Scores = {}
    before = after = curve = None
    raw, calibrated = stated(task, given, 1.0), stated(task, given, calibration.temperature)
    if raw is not None and calibrated is not None:
        trust |= maths.scores(*calibrated)
        trust |= {f"{name}_before": value for name, value in maths.scores(*raw).items()}
        before, after = (
            maths.reliability(*maths.judged(maths.probabilities(*events), events[1])) for events in (raw, calibrated)
        )
    if task.has_score:
        right = [task.is_right(a, row) for a, row in zip(found, given.rows, strict=True)]
        sure = [a["score"] for a in found]
        curve = selective.risk_coverage(sure, right)
        trust |= {"aurc": curve.area, "risk_at_90": curve.risk_at(0.9)}
        if abstain_at is not None:
            trust |= selective.abstain(sure, right, abstain_at)
    if isinstance(task, WithSets):
        trust |= _kept_promises(task, calibration, found, given.rows)
    if calibration.scope is not None and given.outside:
        inside, outside = calibration.scope.of(given.logits), calibration.scope.of(given.outside)
        trust |= scope.detection(inside, outside, calibration.scope.threshold)
    main = main_score(task, found, given.rows)
    return Judgement(task.score(found, given.rows), trust, before, after, curve, main)


def _kept_promises(task: WithSets, calibration: Calibration, found: list[Answer], rows: Sequence[Row]) -> Scores:
    kept: Scores = {}
    for coverage, quantile in calibration.quantiles.items():
        sets = [task.with_set(a, quantile) for a in found]
        percent = f"{100 * coverage:g}"
        kept[f"set_coverage_{percent}"] = float(np.mean([task.covers(a, r) for a, r in zip(sets, rows, strict=True)]))
        kept[f"set_size_{percent}"] = float(np.mean([task.set_size(a) for a in sets]))
    return kept
