"""A comparison as one HTML file that needs nothing else, and as Markdown with the same tables."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment

from attentune.comparison.contenders import contender
from attentune.comparison.pictures import Looks, amount, scores, sensitivity, trade
from attentune.comparison.plan import Conditions
from attentune.comparison.summary import Line, Summary, TaskSummary, summarise
from attentune.evaluation.page import Picture, write
from attentune.evaluation.pictures import svg
from attentune.evaluation.statistics import Estimate


@dataclass(frozen=True)
class Section:
    """One task of the report."""

    task: TaskSummary
    rows: tuple[str, ...]
    """Sizes of the splits, in words."""
    own: str
    """The conditions that are not those of every task, in words."""
    head: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    pictures: tuple[Picture, ...]


def report(folder: str | Path) -> Summary:
    """Draw `report.html` and `report.md` into a comparison's folder.

    Raises:
        StoreError: there is no comparison.
    """
    place, summary = Path(folder).expanduser(), summarise(folder)
    write(place / "report.html", html(summary))
    write(place / "report.md", markdown(summary))
    return summary


def html(summary: Summary) -> str:
    """The page."""
    return _render("report.html.j2", summary, autoescape=True)


def markdown(summary: Summary) -> str:
    """The same tables, without the pictures."""
    return _render("report.md.j2", summary, autoescape=False)


def _render(template: str, summary: Summary, autoescape: bool) -> str:
    environment = Environment(autoescape=autoescape, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    environment.filters |= {"signed": signed, "estimate": estimate, "shown": shown, "errors": errors}
    looks = Looks(summary.contenders)
    sections = [_section(task, looks, differing(summary), pictures=autoescape) for task in summary.tasks]
    text = files("attentune.comparison").joinpath(template).read_text(encoding="utf-8")
    return environment.from_string(text).render(
        summary=summary,
        sections=sections,
        calibrated=[section for section in sections if any(line.ece is not None for line in section.task.lines)],
        conditions=conditions(summary),
        ranking=ranking(summary),
        looks=looks,
        shade=shade,
    )


HEAD = (
    "contender", "seeds", "score", "95 %", "against {}", "validation", "rate", "saved", "trained", "seconds", "memory",
    "1 text", "32 texts", "bare = 1", "ECE", "ECE after",
)  # fmt: skip
SLOWER = "time of a batch of 32 texts, the bare backbone's = 1"


def _section(task: TaskSummary, looks: Looks, own: Sequence[str], pictures: bool) -> Section:
    drawn = _pictures(task, looks) if pictures else ()
    of = "" if task.set_size is None else f" of {task.set_size:,}"
    folded = f"each of {task.folds} folds; {task.tested:,}{of} rows are tested, each once"
    split = folded if task.folds > 1 else "one split"
    sizes = tuple(f"{count:,} {name}" for name, count in task.sizes.items())
    head = tuple(name.format(contender(task.reference).shown) for name in HEAD)
    words = ", ".join(f"{name.replace('_', ' ')} {condition(getattr(task.conditions, name))}" for name in own)
    return Section(task, (*sizes, split), words, head, tuple(map(cells, task.lines)), drawn)


def cells(line: Line) -> tuple[str, ...]:
    """One line of a task's table, in the order of HEAD."""
    return (
        line.shown,
        str(line.seeds),
        f"{line.score.value:.3f}",
        f"{line.score.low:.3f} to {line.score.high:.3f}",
        "" if line.against is None else estimate(line.against),
        f"{line.validation:.3f}",
        line.rate,
        amount(line.bytes, "bytes"),
        f"{line.trained:,}",
        f"{line.seconds:.1f}",
        amount(line.memory, "bytes"),
        *(amount(line.latency[batch]["tuned"], "ms") for batch in ("batch_1", "batch_32")),
        f"{line.latency['batch_32']['ratio']:.2f}",
        *("" if ece is None else f"{ece:.3f}" for ece in (line.ece, line.ece_after)),
    )


def _pictures(task: TaskSummary, looks: Looks) -> tuple[Picture, ...]:
    lines, metric = task.lines, task.metric
    sizes = [float(line.bytes) for line in lines]
    # Milliseconds are of the moment of a run; the bare backbone beside it had the same moment.
    ratios = [line.latency["batch_32"]["ratio"] for line in lines]
    note = "bars: 95 % interval over test rows; grey line: those that nobody beats"
    drawn = [
        Picture(
            "Scores", "point: mean over seeds; bar: 95 % interval over test rows", svg(scores(lines, metric, looks))
        ),
        Picture("Score and bytes", note, svg(trade(lines, sizes, "saved per task", "bytes", metric, looks))),
        Picture(
            "Score and latency",
            f"{note}; dotted: the bare backbone",
            svg(trade(lines, ratios, SLOWER, "ratio", metric, looks)),
        ),
    ]
    if any(len(curve.points) > 1 for curve in task.curves):
        ringed = "seed 0; ring: the rate that was chosen"
        drawn.append(Picture("Score and learning rate", ringed, svg(sensitivity(task.curves, metric, looks))))
    return tuple(drawn)


def ranking(summary: Summary) -> str:
    """Over which tasks contenders are ranked, in a sentence."""
    every, there = len(summary.ranked), len(summary.tasks)
    if not every:
        return "No task has every contender, so there are no ranks."
    if every == there:
        return f"Ranks are over {every} task{'' if every == 1 else 's'}, which every contender has."
    return f"Ranks are over {every} of {there} tasks, which every contender has: {', '.join(summary.ranked)}."


def differing(summary: Summary) -> list[str]:
    """The conditions that are not the same for all tasks."""
    found = [asdict(task.conditions) for task in summary.tasks]
    return [f.name for f in fields(Conditions) if len({one[f.name] for one in found}) > 1]


def condition(value: Any) -> str:
    """One condition's value for people."""
    return "the recipe's" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def conditions(summary: Summary) -> list[tuple[str, str]]:
    """What all tasks and contenders had in common, and where it was measured."""
    own = differing(summary)
    common: Any = summary.tasks[0].conditions if summary.tasks else None
    given = [
        (f.name.replace("_", " "), getattr(common, f.name)) for f in fields(Conditions) if common and f.name not in own
    ]
    packages, system = summary.meta.get("package_info", {}), summary.meta.get("system_info", {})
    found = [(name.removesuffix("-version"), version) for name, version in packages.items() if version]
    machine = [(name, system[name]) for name in ("machine", "accelerator", "threads", "python") if name in system]
    return [(name, condition(value)) for name, value in [*given, *found, *machine]]


def shown(name: str) -> str:
    """A contender for people."""
    return contender(name).shown


def errors(line: Line | None) -> str:
    """Expected calibration error before and after temperature."""
    return "" if line is None or line.ece is None else f"{line.ece:.3f} → {line.ece_after:.3f}"


def signed(value: float) -> str:
    """+0.012, -0.003, or 0 where three digits show nothing."""
    return f"{value:+.3f}".replace("-", "−") if abs(value) >= 0.0005 else "0"


def estimate(found: Estimate) -> str:
    """A difference with its interval."""
    return f"{signed(found.value)} ({signed(found.low)} to {signed(found.high)})"


def shade(found: Estimate, pairs: dict[str, dict[str, Estimate]]) -> str:
    """A background that says how large a difference is among all of a task; none where it is not sure."""
    if not found.sure:
        return ""
    widest = max(abs(one.value) for row in pairs.values() for one in row.values())
    share = 12 + round(38 * abs(found.value) / widest) if widest else 12
    return f"background: color-mix(in srgb, {'#2f6f8f' if found.value > 0 else '#c2571a'} {share}%, #fbfbf9)"
