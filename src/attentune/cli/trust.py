"""The page of `attentune evaluate --report`: how far the probabilities of an adapter can be trusted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from attentune.confidence import Judgement
    from attentune.predict import Adapter


def write(file: Path, adapter: Adapter, found: Judgement) -> None:
    """Reliability before and after the temperature, the risk-coverage curve, and every number."""
    from attentune.evaluation import page, pictures

    card = adapter.card
    drawn: list[page.Picture] = []
    if found.before is not None and found.after is not None:
        temperature = f"temperature {card.calibration.temperature:.3f}"
        parts = {"as learned": found.before, f"with {temperature}": found.after}
        drawn.append(
            page.Picture(
                "Reliability",
                "Where a point lies on the grey line, what was stated is what came true; below it the model says too "
                "much. The larger a point, the more rows it stands for.",
                pictures.svg(pictures.reliability_diagram(parts)),
            )
        )
    if found.curve is not None:
        marked = (
            {"abstaining as asked": (found.trust["answered"], found.trust["risk"])} if "risk" in found.trust else {}
        )
        drawn.append(
            page.Picture(
                "Answering only where it is sure",
                "From left to right less and less sure answers are given; the curve shows the share of wrong ones "
                "among those given so far.",
                pictures.svg(pictures.risk_coverage_diagram({card.name: found.curve}, marked)),
            )
        )
    tables = [page.Table("Scores", ["score", "value"], list(found.scores.items()))]
    if found.trust:
        tables.append(page.Table("Trust", ["number", "value"], list(found.trust.items())))
    note = f"{card.method} on {card.backbone.id}, {card.task.kind}, fitted on {card.calibration.rows} validation rows"
    page.write(file, page.page(f"{card.name}: how far to trust it", note, drawn, tables))
