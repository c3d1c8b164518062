"""The page of one visitor."""

from __future__ import annotations

from importlib.resources import files

from nicegui import ui
from nicegui.elements.mixins.text_element import TextElement

from attentune.errors import UnknownTaskError
from attentune.serving.keys import Key, Keys
from attentune.serving.playground.charts import box, words
from attentune.serving.playground.gate import ask_for_key
from attentune.serving.playground.panel import Panel
from attentune.serving.playground.table import TaskTable, signature
from attentune.serving.service import Service

FOLLOW = 2.0
"""Seconds between two looks at which tasks there are."""


def build(service: Service, keys: Keys) -> None:
    """Lay the page out; what it shows of the tasks comes after the key, where there are keys."""
    ui.add_css(files("attentune.serving.playground").joinpath("style.css").read_text(encoding="utf-8"))
    ui.colors(primary="#2f6f8f")
    with box("div", "playground"):
        words("h1", "attentune")
        about = words("p", "", "note about")
        with ui.element("div") as inside:
            pass

        def opened(key: Key) -> None:
            with inside:
                _tasks(service, key, about)

        everyone = keys.find(None)
        if everyone is None:
            with inside:
                ask_for_key(keys, opened)
        else:
            opened(everyone)


def _tasks(service: Service, key: Key, about: TextElement) -> None:
    panel, table = Panel(service, key), TaskTable(service, key)
    known: list[tuple[str, str]] | None = None

    async def follow() -> None:
        nonlocal known
        await service.fresh.ensure()
        try:
            now = list(signature(service, key))
        except UnknownTaskError:
            return  # Taken away just now: the next look sees it.
        if now == known:
            return
        known = now
        backbone = service.registry.bank.backbone or "backbone"
        about.set_text(f"{len(now)} task{'' if len(now) == 1 else 's'} on one frozen {backbone}")
        panel.offer([name for name, _ in now])
        await table.refresh()

    ui.timer(FOLLOW, follow)
