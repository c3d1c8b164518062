"""The model card, README.md: what an adapter is, how good, how far to trust it, and where it ends."""

from collections.abc import Mapping
from typing import Any

from attentune.card.task_card import TaskCard
from attentune.confidence import Calibration


def model_card(card: TaskCard, metrics: Mapping[str, Any], size: int) -> str:
    """The README.md of an adapter folder."""
    labels = ", ".join(card.task.labels[:20]) + (" ..." if len(card.task.labels) > 20 else "")
    rows = "\n".join(_score_row(name, metrics[name]) for name in ("validation", "test", "baseline") if name in metrics)
    if "seeds" in metrics:
        rows += "\n" + _seeds_row(metrics["seeds"])
    learned = f"Classes: {labels}." if labels else OPEN_ANSWERS[card.task.kind]
    return CARD_TEXT.format(
        backbone=card.backbone.id,
        name=card.name,
        method=card.method,
        kind=card.task.kind,
        columns=card.columns.shown(),
        example=EXAMPLES.get(card.task.kind, '[("a text", "another text")]' if card.task.pair else '["a text"]'),
        learned=learned,
        size=f"{size / 1024:.0f} KiB",
        scores=rows or "(none were taken)",
        max_length=card.max_length,
        trust=UNSURE if card.task.head == "language" else _trust(card.calibration, metrics.get("calibration", {})),
    )


def _score_row(name: str, scores: Mapping[str, float]) -> str:
    return f"- {name}: " + ", ".join(f"{key} {value:.4f}" for key, value in scores.items())


def _seeds_row(seeds: Mapping[str, Any]) -> str:
    split = "test" if "test" in seeds["mean"] else "validation"
    parts = [
        f"{name} {found['mean']:.4f}" + (f" ({found['low']:.4f} to {found['high']:.4f})" if "low" in found else "")
        for name, found in seeds["mean"][split].items()
    ]
    return f"- {split}, mean over {len(seeds['runs'])} seeds (95% interval): " + ", ".join(parts)


def _trust(calibration: Calibration, measured: Mapping[str, Mapping[str, float]]) -> str:
    """What was fitted on validation, and how it holds on the last split."""
    if not (calibration.rows and measured):
        return "It was not calibrated."
    split, found = list(measured.items())[-1]
    if not found:
        return "Its answers state no probabilities."
    where = "the test rows" if split == "test" else "the same rows, for want of test rows (it looks better than it is)"
    lines = [f"Fitted on {calibration.rows} validation rows, saved in `task.json`, measured on {where}:", ""]
    if "ece" in found:
        lines.append(
            f"- temperature {calibration.temperature:.3f}: expected calibration error {found['ece_before']:.4f} before "
            f"and {found['ece']:.4f} after; negative log-likelihood {found['nll_before']:.4f}, {found['nll']:.4f}"
        )
    for promised in calibration.quantiles:
        name = f"{100 * promised:g}"
        kept, size = found[f"set_coverage_{name}"], found[f"set_size_{name}"]
        lines.append(f"- sets that promise to hold the truth for {name} %: {100 * kept:.1f} %, mean size {size:.3g}")
    if "scope_auroc" in found:
        lines.append(
            f"- out-of-scope texts: AUROC {found['scope_auroc']:.4f}; the threshold finds {found['scope_recall']:.1%} "
            f"of them and flags {found['scope_false_alarms']:.1%} of the others"
        )
    return "\n".join(lines)


OPEN_ANSWERS = {
    "regression": "The answer is a number.",
    "question_answering": "The answer is a passage of the context.",
    "multiple_choice": "The answer is one of the choices that stand in the row.",
    "generation": "The answer is a text that the backbone's own language head writes.",
}
EXAMPLES = {
    "question_answering": '[("a question", "a context")]',
    "multiple_choice": '[("a question", ["a choice", "another choice"])]',
}
UNSURE = "There are no probabilities: what is written may be fluent and wrong."

CARD_TEXT = """\
---
library_name: peft
base_model: {backbone}
tags: [attentune, {method}]
---

# {name}

An adapter ({method}, {size}) that answers one {kind} task on the frozen backbone `{backbone}`: {columns}. {learned}

```python
import attentune  # also before peft loads this folder: it makes the method known

adapter = attentune.load("path/to/this/folder")
adapter.predict({example})
```

## Scores

{scores}

`baseline` knows words alone, without a transformer, on the rows of the last split above. All settings are in
`recipe.toml`.

## How far to trust an answer

{trust}

## Limits

Texts are cut after {max_length} tokens (answers then say `truncated`). The scores hold for texts like those of the
training data; on others they can be much lower, without any sign of it.
"""
