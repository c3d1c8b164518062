"""A reply -> a card of the page, by the kind of its task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attentune.card import TaskCard
from attentune.serving.playground import charts
from attentune.serving.playground.asking import Form, Reply
from attentune.serving.playground.charts import box, percent, words
from attentune.serving.playground.spans import pieces
from attentune.tasks import Answer
from attentune.tasks.classify import Regression


def show(reply: Reply, form: Form) -> None:
    """One card."""
    with box("article", "answer") as card:
        card.props["aria-label"] = reply.task
        with box("header"):
            words("h3", reply.task)
            if reply.card is not None:
                words("span", reply.card.method, "note")
        if reply.answer is None or reply.card is None:
            words("p", reply.refusal, "refusal").props("role=alert")
            return
        _remarks(reply.answer, reply.card, form)
        KINDS[reply.card.task.kind](reply.answer, reply.card, form)
        if "attention" in reply.answer:
            words("h4", "Where its prompt came from")
            charts.bars(reply.answer["attention"], kind="sources")


def _remarks(answer: Answer, card: TaskCard, form: Form) -> None:
    """What stands against taking the answer as it is."""
    remarks: list[str] = []
    scope = card.calibration.scope
    if answer.get("out_of_scope") and scope is not None:
        strange = f"{answer['out_of_scope_score']:.3g}, from {scope.threshold:.3g} on"
        remarks.append(f"Out of scope: the text does not look like one for this task ({scope.score} {strange}).")
    if answer.get("abstained"):
        remarks.append(f"Abstains: less sure than {percent(form.abstain_at or 0.0)}.")
    if answer.get("truncated"):
        remarks.append(f"Only the first {card.max_length} tokens were read.")
    for remark in remarks:
        words("p", remark, "remark")


def _headline(text: str, p: float | None = None) -> None:
    with box("p", "headline"):
        words("strong", text)
        if p is not None:
            words("span", percent(p))


def _one_of(answer: Answer, card: TaskCard, form: Form) -> None:
    _headline(answer["label"], answer["score"])
    charts.bars(answer["probabilities"], answer.get("prediction_set", ()))
    _promise(answer, form)


def _any_of(answer: Answer, card: TaskCard, form: Form) -> None:
    _headline(", ".join(answer["labels"]) or "none of the labels", answer["score"])
    charts.bars(answer["probabilities"], answer.get("prediction_set", ()))
    _promise(answer, form)


def _number(answer: Answer, card: TaskCard, form: Form) -> None:
    _headline(f"{answer['value']:.3g}")
    low, high = answer.get("interval", (None, None))
    task = card.task
    assert isinstance(task, Regression)
    interval = None if low is None or high is None else (float(low), float(high))
    charts.scale(answer["value"], task.mean - 2 * task.std, task.mean + 2 * task.std, "training: mean ± 2 sd", interval)
    if interval is not None and form.coverage is not None:
        between = f"Between {interval[0]:.3g} and {interval[1]:.3g}"
        words("p", f"{between}, in {percent(form.coverage)} of cases like those of validation.", "note")


def _spans(answer: Answer, card: TaskCard, form: Form) -> None:
    labels = list(dict.fromkeys(name.split("-", 1)[-1] for name in card.task.labels if name != "O"))
    found = answer["spans"]
    charts.marked(pieces(form.text, [(s["start"], s["end"], s["label"]) for s in found]), labels)
    if not found:
        words("p", "Nothing was found.", "note")
        return
    with box("ul", "found"):
        for span in found:
            with box("li"):
                words("span", span["text"])
                words("span", span["label"], "span-label")
                words("span", percent(span["score"]), "bar-value")


def _passage(answer: Answer, card: TaskCard, form: Form) -> None:
    start, end = answer["start"], answer["end"]
    _headline(answer["answer"] or "No answer in the context", answer["score"])
    charts.marked(pieces(form.second, [] if start is None else [(start, end, "answer")]), ["answer"])
    words("p", f"That the context has no answer: {percent(answer['no_answer'])}.", "note")


def _choice(answer: Answer, card: TaskCard, form: Form) -> None:
    _headline(answer["choice"], answer["score"])
    shown = [f"{i + 1}. {choice}" for i, choice in enumerate(form.choices)]
    inside = [shown[i] for i in answer.get("prediction_set", ())]
    charts.bars(dict(zip(shown, answer["probabilities"], strict=True)), inside)
    _promise(answer, form)


def _promise(answer: Answer, form: Form) -> None:
    if "prediction_set" in answer and form.coverage is not None:
        words("p", f"The set holds the truth in {percent(form.coverage)} of cases like those of validation.", "note")


KINDS: dict[str, Callable[[Any, TaskCard, Form], None]] = {
    "classification": _one_of,
    "multilabel": _any_of,
    "regression": _number,
    "tagging": _spans,
    "question_answering": _passage,
    "multiple_choice": _choice,
}
