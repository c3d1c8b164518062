"""Pictures of a comparison: score against bytes and against latency with the Pareto front, scores with intervals, and
how much a score depends on the learning rate.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from attentune.comparison.summary import Curve, Line

MARKS = ("o", "s", "^", "D", "v", "P", "X", "p", "<", ">", "h", "*")
COLOURS = (
    "#2f6f8f", "#c2571a", "#5b8c3e", "#8a5aa8", "#9a7b1f", "#4a4a4a",
    "#b03a5b", "#2a9d8f", "#7a5195", "#bc7a00", "#4468b0", "#6b705c",
)  # fmt: skip
"""Colour and mark belong to a contender, the same in every picture of a report."""
GREY = "#8a8f98"


class Looks:
    """Colour and mark of each contender."""

    def __init__(self, names: Sequence[str]) -> None:
        self.index = {name: i for i, name in enumerate(names)}

    def colour(self, name: str) -> str:
        """As `#rrggbb`."""
        return COLOURS[self.index[name] % len(COLOURS)]

    def mark(self, name: str) -> str:
        """A matplotlib marker."""
        return MARKS[self.index[name] % len(MARKS)]


def pareto(costs: Sequence[float], scores: Sequence[float]) -> list[int]:
    """The indices that nobody beats: cheaper is never at least as good; by rising cost."""
    front: list[int] = []
    for i in sorted(range(len(costs)), key=lambda i: (costs[i], -scores[i])):
        if not front or scores[i] > scores[front[-1]]:
            front.append(i)
    return front


def trade(lines: Sequence[Line], costs: Sequence[float], what: str, unit: str, metric: str, looks: Looks) -> Figure:
    """Score with its interval against a cost; the line joins those that nobody beats.

    The axis of an amount is logarithmic; that of a ratio is plain and shows 1, too.
    """
    figure, panel = _figure(6.2, 4.2)
    scores = [line.score.value for line in lines]
    front = pareto(costs, scores)
    panel.step([costs[i] for i in front], [scores[i] for i in front], where="post", color=GREY, linewidth=1.4, zorder=1)
    for line, cost in zip(lines, costs, strict=True):
        colour = looks.colour(line.contender)
        panel.vlines(cost, line.score.low, line.score.high, color=colour, alpha=0.4, linewidth=1.6)
        panel.scatter(
            cost, line.score.value, s=46, color=colour, marker=looks.mark(line.contender), zorder=3, label=line.shown
        )
    if unit == "ratio":
        _ratios(panel, costs)
    else:
        panel.set_xscale("log")
        _plain_numbers(panel, costs, unit)
    panel.set(xlabel=what, ylabel=metric)
    _legend(figure)
    return figure


def scores(lines: Sequence[Line], metric: str, looks: Looks) -> Figure:
    """Score of each contender with its interval, the best at the top."""
    figure, panel = _figure(6.2, 0.9 + 0.32 * len(lines))
    for place, line in enumerate(reversed(lines)):
        colour = looks.colour(line.contender)
        panel.hlines(place, line.score.low, line.score.high, color=colour, alpha=0.45, linewidth=3)
        panel.scatter(line.score.value, place, s=42, color=colour, marker=looks.mark(line.contender), zorder=3)
    panel.set_yticks(range(len(lines)), [line.shown for line in reversed(lines)])
    panel.set_ylim(-0.6, len(lines) - 0.4)
    panel.set_xlabel(metric)
    panel.grid(axis="x", color="#e4e4de", linewidth=0.8)
    panel.set_axisbelow(True)
    return figure


def sensitivity(curves: Sequence[Curve], metric: str, looks: Looks) -> Figure:
    """Validation score by learning rate, a curve a contender; a ring marks the rate that was chosen."""
    figure, panel = _figure(6.2, 4.2)
    for curve in curves:
        rates, found = [rate for rate, _ in curve.points], [score for _, score in curve.points]
        colour, mark = looks.colour(curve.contender), looks.mark(curve.contender)
        panel.plot(rates, found, color=colour, marker=mark, markersize=5, linewidth=1.3, label=curve.shown)
        best = int(np.argmax(found))
        panel.scatter(rates[best], found[best], s=120, facecolors="none", edgecolors=colour, linewidth=1.2, zorder=4)
    panel.set_xscale("log")
    panel.set(xlabel="learning rate", ylabel=f"validation {metric}")
    _legend(figure)
    return figure


UNITS: Mapping[str, Sequence[tuple[float, str]]] = {
    "bytes": ((1e9, " GB"), (1e6, " MB"), (1e3, " kB"), (1, " B")),
    "ms": ((1e3, " s"), (1, " ms"), (1e-3, " µs")),
}


def amount(value: float, unit: str) -> str:
    """304416 bytes -> 304 kB: three digits and the unit that suits."""
    size, name = next(((size, name) for size, name in UNITS[unit] if value >= size), UNITS[unit][-1])
    shown = value / size
    return f"{shown:.0f}{name}" if shown >= 99.5 else f"{shown:.3g}{name}"


def _plain_numbers(panel: Axes, values: Sequence[float], unit: str) -> None:
    """Ticks at 1, 2 and 5 of every power of ten, or at the powers alone where there are many."""
    narrow = max(values) / max(min(values), 1e-12) < 60
    low, high = min(values) / 1.35, max(values) * 1.35
    panel.set_xlim(low, high)
    panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if narrow else (1,)))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: amount(value, unit)))
    panel.xaxis.set_minor_formatter(NullFormatter())


def _ratios(panel: Axes, values: Sequence[float]) -> None:
    """From 1, or the least where that is less, to the most; a dotted line marks 1."""
    low, high = min(1.0, *values), max(1.1, *values)
    edge = 0.06 * (high - low)
    panel.set_xlim(low - edge, high + edge)
    panel.axvline(1.0, color=GREY, linestyle=":", linewidth=1, zorder=0)


def _legend(figure: Figure) -> None:
    figure.legend(loc="outside right upper", frameon=False, fontsize=9, handletextpad=0.4)


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    panel = figure.subplots()
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(labelsize=9)
    panel.margins(y=0.08)
    return figure, panel
