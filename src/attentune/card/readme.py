"""The model card, README.md: what an adapter is, how to use it, what it learned from, how good it is, where it ends.

Its reader knows nothing of attentune. The front matter is that of a model card of the Hugging Face hub.
"""

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment

from attentune.card.task_card import TaskCard
from attentune.card.trust import trust
from attentune.evaluation.meanings import meaning
from attentune.method import METHODS

Metrics = Mapping[str, Any]
SPLITS = {"validation": "validation", "test": "test", "baseline": "baseline"}
"""Key of metrics.json -> head of its column."""
BASELINES = {
    "question_answering": ("shared words", "what follows from the words that a sentence shares with the question"),
    "generation": ("nearest row", "the text of the training row whose words are most alike"),
}
"""Kind -> the name of its baseline, and what that is; all other kinds have a linear model."""
SHOWN = 20
"""Classes that are named; more are counted."""
SCARCE = 30
"""Rows below which a class is called small."""

GIVES = {
    "classification": "one of {n} classes",
    "multilabel": "any number of {n} labels",
    "regression": "a number",
    "tagging": "a tag for every word, and the passages that the tags mark",
    "question_answering": "the passage of the context that answers the question, or with nothing where none does",
    "multiple_choice": "one of the choices",
    "generation": "a text that the language model writes",
}
EXAMPLES = {
    "question_answering": (("Who lives in Paris?", "Anna lives in Paris, Bob in Rome."), "a question and a context"),
    "multiple_choice": (("The street is wet.", "It has rained.", "The sun shines."), "a text and the choices"),
}
"""Kind -> an input and what it is; all other kinds take one text, or two."""
PIPELINES = {
    "tagging": "token-classification",
    "question_answering": "question-answering",
    "multiple_choice": "multiple-choice",
    "generation": "text-generation",
}


def model_card(card: TaskCard, metrics: Metrics, size: int, log: bool) -> str:
    """The README.md of an adapter folder whose tensors are `size` bytes; `log`: whether it has a log.jsonl."""
    texts, given = EXAMPLES.get(
        card.task.kind,
        (("Where is my parcel?", "It is on its way."), "two texts")
        if card.task.pair
        else (("Where is my parcel?",), "a text"),
    )
    if card.task.kind == "multiple_choice" and card.task.pair:
        texts, given = ("The street is wet.", "cause", *texts[1:]), "two texts and the choices"
    splits = [name for name in SPLITS if name in metrics]
    last = "test" if "test" in metrics else "validation"
    labels, run = card.task.labels, metrics.get("run", {})
    baseline, plain = BASELINES.get(card.task.kind, ("bag of words", "a linear model that knows words alone"))
    heads = {**SPLITS, "baseline": baseline}
    template = files("attentune.card").joinpath("readme.md.j2").read_text(encoding="utf-8")
    environment = Environment(trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    return environment.from_string(template).render(
        card=card,
        metrics=metrics,
        run=run,
        log=log,
        name=json.dumps(card.name, ensure_ascii=False),
        base_model=json.dumps(card.backbone.id, ensure_ascii=False),
        baseline=baseline,
        plain=plain,
        pipeline=PIPELINES.get(card.task.kind, "text-classification"),
        given=given,
        gives=GIVES[card.task.kind].format(n=len(labels)),
        size=f"{size / 1024:,.0f} KiB",
        classes=", ".join(f"`{label}`" for label in labels[:SHOWN])
        + (f" and {len(labels) - SHOWN} more (`task.json` has them all)" if len(labels) > SHOWN else ""),
        python=json.dumps(texts[0] if len(texts) == 1 else texts, ensure_ascii=False),
        shell=shlex.join([card.name, *texts]),
        made=list(_made(card, run)),
        splits=[f"{heads[name]}{_rows(name, run)}" for name in splits],
        scores=list(_scores(card, metrics, splits)),
        meanings=[(name, text) for name in metrics.get(last, ()) if (text := meaning(name))],
        intervals="intervals" in metrics,
        seeds=_seeds(metrics["seeds"]) if "seeds" in metrics else "",
        last=last,
        rows=run.get("calibration_rows", run.get(f"{last}_rows", 0)),
        few=_few(run),
        trust=trust(card, metrics.get("calibration", {})),
    )


def _made(card: TaskCard, run: Metrics) -> Iterator[tuple[str, str]]:
    """What was trained on what: names and values."""
    what = (METHODS[card.method].config.__doc__ or "").strip().splitlines()[0] if card.method in METHODS else ""
    trained = f"; {run['trainable_parameters']:,} numbers were trained" if "trainable_parameters" in run else ""
    yield "method", f"`{card.method}`{': ' if what else ''}{what.rstrip('.')}{trained}"
    revision = f", revision `{card.backbone.revision}`" if card.backbone.revision else ""
    yield "frozen model", f"`{card.backbone.id}`{revision}, fingerprint `{card.backbone.fingerprint}`"
    yield "task", f"{card.task.kind.replace('_', ' ')}, from columns {card.columns.shown()}"
    named = {"training": "training", "validation": "validation", "test": "test", "calibration": "a later calibration"}
    rows = ", ".join(f"{run[f'{key}_rows']:,} for {name}" for key, name in named.items() if run.get(f"{key}_rows"))
    if rows:
        yield "rows", rows
    if by_class := run.get("rows_by_class"):
        counts = sorted(by_class.values())
        yield "training rows of a class", f"{counts[0]:,} to {counts[-1]:,}"
    if "seconds" in run:
        yield "effort", f"{run['steps']:,} steps, {run['seconds']:,} s"


def _rows(split: str, run: Metrics) -> str:
    count = run.get("calibration_rows", run.get(f"{split}_rows"))
    return "" if count is None or split == "baseline" else f" ({count:,} rows)"


def _scores(card: TaskCard, metrics: Metrics, splits: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Name of a score -> its values by split, the main one in bold and with its interval."""
    for name in dict.fromkeys(name for split in splits for name in metrics[split]):
        values: list[str] = []
        for split in splits:
            value, around = metrics[split].get(name), metrics.get("intervals", {}).get(split, {}).get(name)
            shown = "" if value is None else f"{value:.3f}"
            values.append(f"{shown} ({around['low']:.3f} to {around['high']:.3f})" if around and shown else shown)
        yield (f"**{name}**" if name == card.task.main_metric else name), values


def _seeds(seeds: Mapping[str, Any]) -> str:
    split = "test" if "test" in seeds["mean"] else "validation"
    parts = [
        f"{name} {found['mean']:.3f}" + (f" ({found['low']:.3f} to {found['high']:.3f})" if "low" in found else "")
        for name, found in seeds["mean"][split].items()
    ]
    count = len(seeds["runs"])
    return f"{split.capitalize()}, mean over {count} seeds (95% interval of that mean): {', '.join(parts)}"


def _few(run: Metrics) -> str:
    """Which classes were learned from few rows."""
    small = {label: count for label, count in run.get("rows_by_class", {}).items() if count < SCARCE}
    if not small:
        return ""
    shown = ", ".join(f"`{label}` ({count})" for label, count in sorted(small.items(), key=lambda item: item[1])[:8])
    more = f" and {len(small) - 8} more" if len(small) > 8 else ""
    return f"Classes learned from fewer than {SCARCE} rows, so trust them least: {shown}{more}."
