"""Tasks: text -> tokens -> loss -> answers -> scores. Knows no method and no backbone."""

from collections.abc import Mapping
from typing import Any

from attentune.errors import StoreError
from attentune.tasks.answer import QuestionAnswering
from attentune.tasks.choose import MultipleChoice
from attentune.tasks.classify import Classification, MultiLabel, Regression
from attentune.tasks.data import Data, load_data
from attentune.tasks.generate import Generation
from attentune.tasks.tag import Tagging
from attentune.tasks.task import Answer, Features, Task
from attentune.tasks.verbalise import Cloze

__all__ = ["KINDS", "Answer", "Data", "Features", "Task", "load_data", "task_from_card", "task_of"]

KINDS: dict[str, type[Task]] = {
    task.kind: task
    for task in (Classification, MultiLabel, Regression, Tagging, QuestionAnswering, MultipleChoice, Generation)
}


def task_of(data: Data, stride: int = 64, answer_length: int = 30) -> Task:
    """The task that the data make; `stride` and `answer_length` are those of question answering, in tokens."""
    if data.kind == "generation":
        return Generation()
    if data.kind == "question_answering":
        return QuestionAnswering(
            stride=stride, answer_length=answer_length, unanswerable=not all(row["answers"] for row in data.train)
        )
    if data.kind == "multiple_choice":
        return MultipleChoice(data.pair)
    if data.kind == "regression":
        return Regression.of([row["label"] for row in data.train], data.pair)
    if data.kind == "tagging":
        return Tagging(data.labels)
    return (
        Classification(data.labels, data.pair) if data.kind == "classification" else MultiLabel(data.labels, data.pair)
    )


def task_from_card(card: Mapping[str, Any]) -> Task:
    """The task that `Task.to_card` described."""
    kind = card.get("kind")
    if kind not in KINDS:
        raise StoreError(f"the task card names kind {kind!r}; the kinds are {', '.join(KINDS)}")
    try:
        return (Cloze if "template" in card else KINDS[kind]).from_card(card)
    except KeyError as error:
        raise StoreError(f"the task card of kind {kind} has no {error.args[0]!r}") from error
