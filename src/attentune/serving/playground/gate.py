"""The question for a key: before it is answered the page holds nothing of the tasks."""

from __future__ import annotations

from collections.abc import Callable

from nicegui import ui

from attentune.serving.guard import admit
from attentune.serving.keys import Key, Keys
from attentune.serving.playground.charts import box, words
from attentune.serving.problems import Refused


def ask_for_key(keys: Keys, opened: Callable[[Key], None]) -> None:
    """A form for a key that may see all tasks (admin) and ask them (predict); `opened` is called with it."""

    def check() -> None:
        try:
            key = admit(keys, given.value, "admin")
            admit(keys, given.value, "predict")
        except Refused as error:
            said.set_text("This key is not known here." if error.status == 401 else f"No: {error.detail}.")
            said.set_visibility(True)
            return
        form.delete()
        opened(key)

    with box("section", "gate") as form:
        words("h2", "A key, please")
        words(
            "p",
            "This page shows and asks every task: its API key has the scopes admin and predict.",
            "note",
        )
        given = (
            ui.input("API key", password=True).props("outlined autofocus autocomplete=off").on("keydown.enter", check)
        )
        said = words("p", "", "refusal").props("role=alert")
        said.set_visibility(False)
        ui.button("Open", on_click=check).props("unelevated no-caps")
