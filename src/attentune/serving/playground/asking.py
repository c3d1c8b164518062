"""What a visitor typed -> what the service is asked -> replies, the picked tasks in their order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from attentune.card import TaskCard
from attentune.errors import DataError, UnknownTaskError
from attentune.serving.entry import Entry
from attentune.serving.keys import Key
from attentune.serving.service import Service, Wanted
from attentune.tasks import Answer, Task
from attentune.tasks.task import WithSets


@dataclass(frozen=True)
class Form:
    """What a visitor typed."""

    text: str
    second: str = ""
    """The other text of a pair, or the context of a question."""
    choices: tuple[str, ...] = ()
    abstain_at: float | None = None
    coverage: float | None = None


@dataclass(frozen=True)
class Reply:
    """What came of one task: an answer, or one sentence."""

    task: str
    card: TaskCard | None = None
    answer: Answer | None = None
    refusal: str = ""


def coverages(task: Task, card: TaskCard) -> tuple[float, ...]:
    """The promises that sets of a task can keep."""
    return tuple(sorted(card.calibration.quantiles)) if isinstance(task, WithSets) else ()


def wants_second(task: Task) -> bool:
    """Whether a task reads two texts."""
    return task.pair


def wants_choices(task: Task) -> bool:
    """Whether a task chooses between what the visitor gives."""
    return task.kind == "multiple_choice"


def wanted(name: str, entry: Entry, form: Form) -> Wanted:
    """One ask; what a kind of task cannot do (abstain, sets) is not asked of it.

    Raises:
        DataError: something that the task reads was not typed.
    """
    card = entry.card
    return Wanted(
        name,
        _input(card.task, form),
        form.abstain_at if card.task.has_score else None,
        form.coverage if form.coverage in coverages(card.task, card) else None,
        bool(entry.prompts),
    )


def _input(task: Task, form: Form) -> Any:
    parts: list[Any] = [form.text]
    if wants_second(task):
        if not form.second.strip():
            other = "a context" if task.kind == "question_answering" else "a second text"
            raise DataError(f"This task wants {other}.")
        parts.append(form.second)
    if wants_choices(task):
        if len(form.choices) < 2:
            raise DataError("This task wants choices, two or more, one a line.")
        parts.append(list(form.choices))
    return parts[0] if len(parts) == 1 else parts


async def ask(service: Service, key: Key, names: Sequence[str], form: Form) -> list[Reply]:
    """Ask the tasks, all in one request.

    Raises:
        Refused: the whole request is.
        OverloadedError: the queue is full.
    """
    await service.fresh.ensure()
    replies: dict[str, Reply] = {}
    asked: list[Wanted] = []
    cards: dict[str, TaskCard] = {}
    for name in names:
        try:
            entry = service.visible(key, name).active.entry
            asked.append(wanted(name, entry, form))
            cards[name] = entry.card
        except UnknownTaskError:
            replies[name] = Reply(name, refusal="This task is not served any more.")
        except DataError as error:
            replies[name] = Reply(name, refusal=str(error))
    for found in await service.all(asked, key) if asked else ():
        name, failure = found["task"], found.get("error", {})
        replies[name] = Reply(name, cards[name], found.get("answer"), failure.get("detail", ""))
    return [replies[name] for name in names]
