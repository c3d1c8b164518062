"""How far to trust an answer: what was fitted on validation rows and how it holds, in the words of the model card."""

import shlex
from collections.abc import Iterator, Mapping

from attentune.card.task_card import TaskCard
from attentune.evaluation.meanings import meaning

Trust = Mapping[str, float]
ERRORS = ("ece", "nll", "brier")
"""Scores of probabilities that are shown before and after the temperature."""


def trust(card: TaskCard, measured: Mapping[str, Trust]) -> str:
    """The section; `measured` holds what `Judgement.trust` lists, by split."""
    if card.task.head == "language":
        return "There are no probabilities: what is written may be fluent and wrong."
    if not (card.calibration.rows and measured):
        return "It was not calibrated: what it states as probabilities was never held against what is true."
    split, found = list(measured.items())[-1]
    if not found:
        return "Its answers state no probabilities."
    where = "the test rows" if split == "test" else "the same rows, for want of test rows (it looks better than it is)"
    lines = [f"All of this was fitted on {card.calibration.rows} validation rows and measured on {where}.", ""]
    lines += [*_probabilities(card, found), *_sets(card, found), *_scope(card, found)]
    return "\n".join(lines).rstrip()


def _probabilities(card: TaskCard, found: Trust) -> Iterator[str]:
    if "ece" not in found:
        return
    temperature = card.calibration.temperature
    effect = "less sure" if temperature > 1 else "surer"
    yield f"**Probabilities** come from the scores divided by the temperature {temperature:.3f}, which makes answers"
    yield f"{effect} than they were learned. Of 100 answers that say 80 %, about 80 should be right:"
    yield ""
    yield "| less is better | as learned | with the temperature |"
    yield "| --- | ---: | ---: |"
    for name in ERRORS:
        if f"{name}_before" in found:
            yield f"| {name}: {meaning(name)} | {found[f'{name}_before']:.4f} | {found[name]:.4f} |"
    yield ""
    if card.task.has_score:
        yield f"`attentune predict {shlex.quote(card.name)} TEXT --abstain-at 0.8` marks answers below 80 %."
        if "risk_at_90" in found:
            yield f"Of the surest 90 % of the answers, {found['risk_at_90']:.1%} were wrong."
        yield ""


def _sets(card: TaskCard, found: Trust) -> Iterator[str]:
    promises = [p for p in card.calibration.quantiles if f"set_coverage_{100 * p:g}" in found]
    if not promises:
        return
    number = card.task.kind == "regression"
    what, size = ("Intervals", "mean width") if number else ("Sets of answers", "mean size")
    yield f"**{what}** hold the truth with a promised probability (`--coverage {promises[-1]:g}`), for texts like"
    yield "those of validation (split conformal prediction):"
    yield ""
    yield f"| promised | held | {size} |"
    yield "| ---: | ---: | ---: |"
    for promised in promises:
        name = f"{100 * promised:g}"
        yield f"| {name} % | {found[f'set_coverage_{name}']:.1%} | {found[f'set_size_{name}']:.3g} |"
    yield ""


def _scope(card: TaskCard, found: Trust) -> Iterator[str]:
    if card.calibration.scope is None:
        return
    yield "**Texts that are not for the task** are marked `out_of_scope`."
    if "scope_auroc" in found:
        caught, wrong = found["scope_recall"], found["scope_false_alarms"]
        yield f"Of such texts {caught:.1%} were found; of the others {wrong:.1%} were"
        yield f"marked by mistake (AUROC {found['scope_auroc']:.4f}: {meaning('scope_auroc')})."
    yield ""
