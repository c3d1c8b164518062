"""The form: tasks, a text, what is wished; and the answers below it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from nicegui import ui

from attentune.card import TaskCard
from attentune.errors import AttentuneError
from attentune.serving.keys import Key
from attentune.serving.playground import answers, asking
from attentune.serving.playground.asking import Form, Reply
from attentune.serving.playground.charts import box, percent, words
from attentune.serving.problems import Refused
from attentune.serving.service import Service

PICKED = 8
"""Tasks that are picked when the page opens."""
LONGEST = 200_000
"""Characters of a text."""
QUIET = "flat dense no-caps"
NO_SETS: dict[Any, str] = {None: "no sets"}


class Panel:
    """What a visitor asks, and what came of it."""

    def __init__(self, service: Service, key: Key) -> None:
        self.service, self.key = service, key
        with box("section", "ask"):
            with box("div", "form"):
                with box("div", "texts"):
                    self._texts()
                with box("div", "wishes"):
                    self._wishes(service.names(key))
            self.said = words("p", "", "said").props("role=status aria-live=polite")
            self.found = box("div", "answers")
        self.fit()

    def _texts(self) -> None:
        self.text = _text("Text", "Type or paste a text, and see what every task makes of it")
        self.text.props("autofocus").on("keydown.ctrl.enter", self.ask).on("keydown.meta.enter", self.ask)
        self.second = _text("Second text, or context")
        self.choices = _text("Choices, one a line")
        self.button = ui.button("Ask", on_click=self.ask).props("unelevated no-caps").classes("go")

    def _wishes(self, names: Sequence[str]) -> None:
        self.tasks = ui.select(
            list(names), label="Tasks", multiple=True, with_input=True, value=names[:PICKED], on_change=self.fit
        ).props("outlined use-chips")
        with box("div", "pick"):
            ui.button("All", on_click=lambda: self.tasks.set_value(self.service.names(self.key))).props(QUIET)
            ui.button("None", on_click=lambda: self.tasks.set_value([])).props(QUIET)
        self.abstain = ui.number("Abstain when less sure than, %", min=0, max=100).props("outlined clearable")
        self.coverage = ui.select(NO_SETS, label="Sets that hold the truth", value=None).props("outlined")

    def offer(self, names: Sequence[str]) -> None:
        """Other tasks are served now; where there were none before, the first ones are picked."""
        picked = [name for name in self.tasks.value if name in set(names)] if self.tasks.options else names[:PICKED]
        self.tasks.set_options(list(names), value=list(picked))
        self.fit()

    def fit(self) -> None:
        """Show the fields that the picked tasks read."""
        cards = self._cards()
        self.second.set_visibility(any(asking.wants_second(card.task) for card in cards))
        self.choices.set_visibility(any(asking.wants_choices(card.task) for card in cards))
        self.abstain.set_visibility(any(card.task.has_score for card in cards))
        promises = sorted({c for card in cards for c in asking.coverages(card.task, card)})
        self.coverage.set_visibility(bool(promises))
        options = {**NO_SETS, **{c: percent(c) for c in promises}}
        self.coverage.set_options(options, value=self.coverage.value if self.coverage.value in options else None)

    async def ask(self) -> None:
        """Ask the picked tasks and show their replies."""
        names, form = list(self.tasks.value), self._form()
        if not names or not form.text.strip():
            self._say("Pick at least one task." if form.text.strip() else "Type a text first.")
            return
        self.button.props("loading")
        begin = time.perf_counter()
        try:
            replies = await asking.ask(self.service, self.key, names, form)
        except (Refused, AttentuneError) as error:
            self._say(f"Not answered: {error}.")
            return
        finally:
            self.button.props(remove="loading")
        took = 1000 * (time.perf_counter() - begin)
        self._show(replies, form, took)

    def _show(self, replies: Sequence[Reply], form: Form, milliseconds: float) -> None:
        answered = sum(reply.answer is not None for reply in replies)
        self._say(f"{answered} answer{'' if answered == 1 else 's'} in {milliseconds:.0f} ms")
        self.found.clear()
        with self.found:
            for reply in replies:
                answers.show(reply, form)

    def _form(self) -> Form:
        sure, lines = self.abstain.value, (self.choices.value or "").splitlines()
        return Form(
            self.text.value or "",
            self.second.value or "",
            tuple(line.strip() for line in lines if line.strip()),
            None if sure is None or not self.abstain.visible else min(max(float(sure) / 100, 0.0), 1.0),
            self.coverage.value if self.coverage.visible else None,
        )

    def _cards(self) -> list[TaskCard]:
        there = set(self.service.names(self.key))
        picked = [name for name in self.tasks.value if name in there]
        return [self.service.visible(self.key, name).active.entry.card for name in picked]

    def _say(self, text: str) -> None:
        self.said.set_text(text)


def _text(label: str, hint: str = "") -> ui.textarea:
    return ui.textarea(label, placeholder=hint).props(f"outlined autogrow maxlength={LONGEST}")
