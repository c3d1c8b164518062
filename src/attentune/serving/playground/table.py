"""The task table, and what a row opens: where an adapter comes from, how good it is, how far it can be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nicegui import ui
from starlette.concurrency import run_in_threadpool

from attentune import store
from attentune.errors import UnknownTaskError
from attentune.evaluation.calibration import Reliability
from attentune.serving.keys import Key
from attentune.serving.playground import overview
from attentune.serving.playground.charts import box, words
from attentune.serving.playground.overview import Line
from attentune.serving.registry import Served
from attentune.serving.service import Service

COLUMNS = (
    "name:Task",
    "kind:Kind",
    "method:Method",
    "bytes:Bytes",
    "score:Score",
    "ece:Calibration error",
    "version:Version",
)
NUMBERS = ("bytes", "score", "ece")
TITLE = "details-title"
NAME = """
<q-td :props="props"><button type="button" class="open" aria-haspopup="dialog">{{ props.value }}</button></q-td>
"""


class TaskTable:
    """All tasks that a key sees."""

    def __init__(self, service: Service, key: Key) -> None:
        self.service, self.key = service, key
        with box("section", "tasks"):
            words("h2", "Tasks")
            words("p", "A row opens what is known of a task, and its reliability diagram.", "note")
            self.table = ui.table(columns=_columns(), rows=[], row_key="name", pagination=10)
            self.table.props("flat no-data-label='No task is served: put adapter folders into the served folder.'")
            self.table.add_slot("body-cell-name", NAME)
            self.table.on("rowClick", self.open, [[], ["name"], None])
        with ui.dialog().props(f"aria-labelledby={TITLE}") as self.dialog, box("div", "card details") as self.details:
            pass

    async def refresh(self) -> None:
        """Read the lines again."""
        self.table.rows = [_row(line) for line in await run_in_threadpool(self._lines)]

    def _lines(self) -> list[Line]:
        return [overview.line(name, served) for name, served in self.service.tasks(self.key)]

    async def open(self, event: Any) -> None:
        """Show one task."""
        name = event.args[1]["name"]
        try:
            served = self.service.visible(self.key, name)
        except UnknownTaskError as error:
            ui.notify(str(error))
            return
        metrics = await run_in_threadpool(store.metrics_of, served.active.entry.folder)
        line = await run_in_threadpool(overview.line, name, served)
        bins = overview.reliability(metrics, line.split)
        drawn = {shown: await run_in_threadpool(_drawn, shown, part) for shown, part in bins.items()}
        self.details.clear()
        with self.details:
            ui.button("Close", on_click=self.dialog.close).props("flat dense no-caps").classes("close")
            _details(line, served, metrics)
            _diagrams(line, drawn)
        self.dialog.open()


def _columns() -> list[dict[str, Any]]:
    columns: list[dict[str, Any]] = []
    for column in COLUMNS:
        name, label = column.split(":")
        entry = {"name": name, "field": name, "label": label, "sortable": True, "classes": name, "headerClasses": name}
        columns.append({**entry, "align": "right" if name in NUMBERS else "left"})
        if name in NUMBERS:
            columns[-1][":format"] = f"(value, row) => row.{name}_shown"
    return columns


def _row(line: Line) -> dict[str, Any]:
    return {
        "name": line.name,
        "kind": line.kind.replace("_", " "),
        "method": line.method,
        "bytes": line.bytes,
        "bytes_shown": f"{line.bytes:,}",
        "score": line.score,
        "score_shown": scored(line),
        "ece": line.ece,
        "ece_shown": "" if line.ece is None else f"{line.ece:.3f}",
        "version": line.version,
    }


def scored(line: Line) -> str:
    """The main score with its interval, where seeds gave one."""
    if line.score is None:
        return "not measured"
    between = f" ({line.interval.low:.3f} to {line.interval.high:.3f})" if line.interval else ""
    return f"{line.metric} {line.score:.3f}{between}"


def _details(line: Line, served: Served, metrics: dict[str, Any]) -> None:
    card, active = served.active.entry.card, served.active
    words("h2", line.name).props["id"] = TITLE
    facts = {
        "kind": line.kind.replace("_", " ") + (f", {len(card.task.labels)} labels" if card.task.labels else ""),
        "method": f"{line.method} on {card.backbone.id}",
        "size": f"{line.bytes:,} bytes",
        "longest text": f"{card.max_length} tokens",
        "version": f"{active.id}, {len(served.earlier)} earlier",
        "calibration": _calibrated(line, served, metrics),
        line.metric: _measured(line, metrics),
    }
    if served.trial is not None:
        how = "as a shadow" if served.trial.shadow else f"on {100 * served.trial.share:g} % of the asks"
        facts["on trial"] = f"{served.trial.version.id}, {how}"
    if card.task.labels:
        facts["labels"] = ", ".join(card.task.labels)
    with box("dl", "facts"):
        for name, fact in facts.items():
            words("dt", name)
            words("dd", fact)


def _measured(line: Line, metrics: dict[str, Any]) -> str:
    if line.score is None:
        return "not measured"
    parts = [f"{line.score:.4f} on {line.split} rows"]
    if line.interval:
        mean = f"mean of {line.interval.seeds} seeds {line.interval.mean:.4f}"
        parts.append(f"{mean}, 95% interval {line.interval.low:.4f} to {line.interval.high:.4f}")
    baseline = overview.number(metrics, "baseline", line.metric)
    return "; ".join([*parts, *([] if baseline is None else [f"a bag of words has {baseline:.4f}"])])


def _calibrated(line: Line, served: Served, metrics: dict[str, Any]) -> str:
    fitted = served.active.entry.card.calibration
    if not fitted.rows:
        return "never calibrated"
    before = overview.number(metrics, "calibration", line.split, "ece_before")
    if line.ece is None or before is None:
        return f"fitted on {fitted.rows} validation rows"
    return (
        f"temperature {fitted.temperature:.3f}, fitted on {fitted.rows} validation rows: expected calibration error "
        f"{before:.3f} before, {line.ece:.3f} after, on {line.split} rows"
    )


def _diagrams(line: Line, drawn: dict[str, tuple[str, float]]) -> None:
    words("h3", "Reliability")
    if not drawn:
        reason = (
            "This kind of task states no probabilities."
            if line.kind == "regression"
            else "This version keeps no bins; “attentune evaluate --report” draws them from labelled rows."
        )
        words("p", reason, "note")
        return
    words("p", f"On {line.split} rows. On the grey line what is stated is what comes true.", "note")
    with box("div", "diagrams"):
        for shown, (svg, error) in drawn.items():
            figure = ui.html(svg, sanitize=False).classes("diagram")  # drawn here, from numbers only
            figure.props["role"] = "img"
            figure.props["aria-label"] = f"Reliability diagram, {shown}: expected calibration error {error:.3f}"


def _drawn(shown: str, bins: Reliability) -> tuple[str, float]:
    from attentune.evaluation import pictures  # matplotlib takes a second to import

    return pictures.svg(pictures.reliability_diagram({shown: bins})), bins.error


def signature(service: Service, key: Key) -> Sequence[tuple[str, str]]:
    """What changes when the table does."""
    return [(name, served.active.id) for name, served in service.tasks(key)]
