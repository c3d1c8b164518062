"""Pictures of trust: arrays -> matplotlib figures, and figures -> SVG for a page. No window, no global state."""

import io
from collections.abc import Mapping

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from attentune.evaluation.calibration import Reliability
from attentune.evaluation.selective import RiskCoverage

COLOURS = ("#2f6f8f", "#c2571a", "#5b8c3e", "#8a5aa8", "#9a7b1f", "#4a4a4a")
"""One a curve, in their order; told apart also by eyes that do not see red and green."""
GREY = "#8a8f98"
SWING = 0.05
"""Share of rows at the beginning of a risk-coverage curve that does not set its scale."""


def reliability_diagram(parts: Mapping[str, Reliability]) -> Figure:
    """Observed against stated probability, a panel for each part (such as before and after the temperature).

    On the grey diagonal what is stated is what comes true; the area of a point is the share of rows in its bin.
    """
    figure, panels = _figure(len(parts), width=3.6)
    for i, (panel, (name, part)) in enumerate(zip(panels, parts.items(), strict=True)):
        panel.plot([0, 1], [0, 1], color=GREY, linewidth=1)
        panel.vlines(part.stated, part.stated, part.observed, color=COLOURS[i % len(COLOURS)], alpha=0.45, linewidth=2)
        area = 12 + 260 * part.weight
        colour = COLOURS[i % len(COLOURS)]
        panel.scatter(part.stated, part.observed, s=area, color=colour, zorder=3, clip_on=False)
        panel.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xlabel="stated probability")
        panel.set_title(f"{name}: ECE {part.error:.3f}", fontsize=10)
    panels[0].set_ylabel("share that came true")
    return figure


def risk_coverage_diagram(
    curves: Mapping[str, RiskCoverage], marked: Mapping[str, tuple[float, float]] | None = None
) -> Figure:
    """The share of wrong answers against the share of rows answered, the surest first; a curve for each name.

    `marked` are points to look at: name -> (share answered, share wrong among those).
    """
    figure, (panel,) = _figure(1, width=5.2)
    for i, (name, curve) in enumerate(curves.items()):
        label = f"{name}: area {curve.area:.3f}"
        panel.plot(curve.answered, curve.risk, color=COLOURS[i % len(COLOURS)], linewidth=1.6, label=label)
    for name, (answered, risk) in (marked or {}).items():
        panel.scatter([answered], [risk], s=36, color=COLOURS[1], zorder=3, clip_on=False)
        side, aligned = (8, "left") if answered < 0.5 else (-8, "right")
        panel.annotate(name, (answered, risk), (side, 6), textcoords="offset points", fontsize=9, ha=aligned)
    # The first few rows swing between no risk and all of it: the scale is that of the rest.
    steady = [curve.risk[curve.answered >= SWING] for curve in curves.values()]
    highest = max((float(risk.max()) for risk in steady), default=0.0)
    panel.set(
        xlim=(0, 1), ylim=(0, 1.08 * highest or 1.0), xlabel="share of rows answered", ylabel="share of wrong answers"
    )
    panel.legend(loc="upper left", frameon=False, fontsize=9)
    return figure


def svg(figure: Figure) -> str:
    """The figure as an <svg> element, the same text for the same figure."""
    out = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "attentune", "svg.fonttype": "none", "font.family": "sans-serif"}):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    return text[text.index("<svg") :]


def _figure(panels: int, width: float) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width * panels, 3.7), layout=ConstrainedLayoutEngine(wspace=0.08))
    FigureCanvasSVG(figure)
    drawn: list[Axes] = list(figure.subplots(1, panels, squeeze=False)[0])
    for panel in drawn:
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=8)
    return figure, drawn
