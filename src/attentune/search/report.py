"""What a search leaves for people and programs: every trial, what mattered, and how the best score rose."""

import math
from dataclasses import asdict
from typing import Any

import optuna
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from optuna.trial import FrozenTrial, TrialState

from attentune.evaluation.page import Picture, Table, page
from attentune.evaluation.pictures import COLOURS, GREY, svg
from attentune.search.budget import Budget

HISTORY = "A point a trial; crosses were given up or failed; the line is the best so far."


def files_of(study: optuna.Study, metric: str, budget: Budget) -> tuple[dict[str, Any], str]:
    """The study as plain values (`search.json`) and as a page (`search.html`)."""
    tried = [trial for trial in study.trials if "seconds" in trial.user_attrs]
    higher = study.direction == optuna.study.StudyDirection.MAXIMIZE
    summary: dict[str, Any] = {
        "metric": metric,
        "budget": {key: value for key, value in asdict(budget).items() if value is not None},
        "best": _plain(study.best_trial, higher),
        "importance": importance(study),
        "refused": sum("why" in trial.user_attrs for trial in study.trials) - sum("why" in t.user_attrs for t in tried),
        "trials": [_plain(trial, higher) for trial in tried],
    }
    return summary, _page(summary, tried, higher)


def importance(study: optuna.Study) -> dict[str, float]:
    """Setting -> its share of what decides the score, by PED-ANOVA (Watanabe et al. 2023, arXiv 2304.10255).

    It needs finished trials that differ; with too few of them there is none.
    """
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(done) < 4 or len({trial.value for trial in done}) < 2:
        return {}
    found = optuna.importance.get_param_importances(study)
    return {name: round(float(value), 4) for name, value in found.items()}


def _plain(trial: FrozenTrial, higher: bool) -> dict[str, Any]:
    scores = [trial.intermediate_values[number] for number in sorted(trial.intermediate_values)]
    return {
        "number": trial.number,
        "method": trial.params["method"],
        "settings": {key: value for key, value in trial.params.items() if key != "method"},
        "bytes": trial.user_attrs["bytes"],
        "latency": trial.user_attrs["latency"],
        "score": trial.value,
        "scores": scores,
        "reached": (max if higher else min)(scores) if scores else None,
        "given_up": trial.user_attrs.get("why"),
        "failed": trial.user_attrs.get("error"),
        "seconds": trial.user_attrs["seconds"],
    }


def _page(summary: dict[str, Any], tried: list[FrozenTrial], higher: bool) -> str:
    best, metric = summary["best"], summary["metric"]
    rows = sorted(summary["trials"], key=lambda t: (t["score"] is None, (-1 if higher else 1) * (t["score"] or 0.0)))
    columns = ["settings", "method", "trial", "bytes", "latency", metric, "seconds", "given up"]
    table = [
        [
            ", ".join(f"{_short(key)} {_value(value)}" for key, value in one["settings"].items()),
            one["method"],
            one["number"],
            f"{one['bytes']:,}",
            "" if one["latency"] is None else f"{one['latency']:.2f}x",
            "" if one["reached"] is None else one["reached"],
            f"{one['seconds']:.0f}",
            one["given_up"] or ("failed" if one["failed"] else ""),
        ]
        for one in rows
    ]
    failed = [[one["number"], one["method"], one["failed"]] for one in rows if one["failed"]]
    note = (
        f"{len(tried)} trials were trained and {summary['refused']} proposals were over the budget. The best is trial "
        f"{best['number']}: {best['method']}, {best['bytes']:,} bytes, {metric} {best['score']:.4f} on validation."
    )
    shares = [Table("What mattered", ["setting", "share"], list(summary["importance"].items()))]
    return page(
        "Search",
        note,
        [Picture("History", HISTORY, _history(tried, higher, metric))],
        [
            Table("Trials", columns, table),
            *([Table("Failures", ["trial", "method", "error"], failed)] if failed else []),
            *(shares if summary["importance"] else []),
        ],
    )


def _history(tried: list[FrozenTrial], higher: bool, metric: str) -> str:
    sign = 1.0 if higher else -1.0
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    FigureCanvasSVG(figure)
    panel = figure.subplots()
    best, rising = -math.inf, list[float]()
    scored = [trial for trial in tried if trial.intermediate_values]
    for place, trial in enumerate(scored, 1):
        score = sign * max(sign * value for value in trial.intermediate_values.values())
        done = trial.state == TrialState.COMPLETE
        panel.plot(place, score, marker="o" if done else "x", color=COLOURS[0] if done else GREY, linestyle="none")
        best = max(best, sign * score) if done else best
        rising.append(sign * best if math.isfinite(best) else math.nan)
    panel.step(range(1, len(scored) + 1), rising, where="post", color=COLOURS[1], linewidth=1.4)
    panel.set(xlabel="trial", ylabel=f"{metric} on validation")
    panel.spines[["top", "right"]].set_visible(False)
    return svg(figure)


def _short(key: str) -> str:
    return key.rpartition(".")[2].replace("_", " ")


def _value(value: Any) -> str:
    return f"{value:.2g}" if isinstance(value, float) else str(value)
