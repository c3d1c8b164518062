"""The page of `attentune evaluate --report`: how far the probabilities of an adapter can be trusted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from attentune.confidence import Judgement
    from attentune.evaluation import page
    from attentune.evaluation.metrics import Scores
    from attentune.predict import Adapter


def _scores(found: Judgement, metric: str) -> page.Table:
    from attentune.evaluation import page
    from attentune.evaluation.meanings import meaning

    around = {} if found.main is None else {metric: f"{found.main.low:.4f} to {found.main.high:.4f}"}
    rows = [(name, value, around.get(name, "")) for name, value in found.scores.items()]
    note = "In the last column: where the score would lie for 95 of 100 other draws of as many rows (bootstrap)."
    columns = ["score", "value", "95% interval"]
    return page.Table("Scores", columns, rows, note if around else "", {name: meaning(name) for name in found.scores})


def _trust(trust: Scores) -> page.Table:
    """What changes with the temperature in two columns, all else in the last."""
    from attentune.evaluation import page
    from attentune.evaluation.meanings import meaning

    rows = [(name, trust.get(f"{name}_before", ""), value) for name, value in trust.items() if "_before" not in name]
    return page.Table(
        "Trust", ["number", "as learned", "calibrated"], rows, "", {name: meaning(name) for name in trust}
    )


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
    tables = [_scores(found, card.task.main_metric)]
    if found.trust:
        tables.append(_trust(found.trust))
    kind, rows = card.task.kind.replace("_", " "), card.calibration.rows
    note = f"An adapter ({card.method}) for one {kind} task on the frozen {card.backbone.id}."
    if rows:
        note += f" Its calibration was fitted on {rows} validation rows; below is how that holds on the rows given."
    page.write(file, page.page(f"{card.name}: how far to trust it", note, drawn, tables))
