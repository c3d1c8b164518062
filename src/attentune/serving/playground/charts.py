"""Numbers -> elements of the page: bars, a number on its scale, a marked text. What is drawn is also written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from nicegui import ui
from nicegui.element import Element
from nicegui.elements.mixins.text_element import TextElement

from attentune.serving.playground.spans import Piece

SHOWN = 5
"""Bars that are shown before one asks for all."""
TINTS = 6


def box(tag: str, classes: str = "") -> Element:
    """An element to put others in."""
    return ui.element(tag).classes(classes)


def words(tag: str, text: str, classes: str = "") -> TextElement:
    """An element with a text, which is shown as it is."""
    return TextElement(tag=tag, text=text).classes(classes)


def percent(p: float) -> str:
    """48 %, and never 0 % or 100 % of what is not quite that."""
    if 0.0 < p < 0.01:
        return "< 1 %"
    return "> 99 %" if 0.99 < p < 1.0 else f"{100 * p:.0f} %"


def bars(parts: Mapping[str, float], tagged: Iterable[str] = (), tag: str = "in the set", kind: str = "") -> None:
    """Shares between 0 and 1 by name, the largest first; `tagged` ones carry a word more."""
    order = sorted(parts.items(), key=lambda part: -part[1])
    marked = set(tagged)
    # What is tagged is never hidden.
    first = max([SHOWN, *(i + 1 for i, (name, _) in enumerate(order) if name in marked)])
    _bars(order[:first], marked, tag, kind)
    if order[first:]:
        with ui.expansion(f"{len(order) - first} more").classes("more").props("dense"):
            _bars(order[first:], marked, tag, kind)


def _bars(order: Sequence[tuple[str, float]], marked: set[str], tag: str, kind: str) -> None:
    with box("ul", f"bars {kind}"):
        for name, share in order:
            with box("li"):
                with box("span", "bar-name"):
                    words("span", name)
                    if name in marked:
                        words("span", tag, "tag")
                words("span", percent(share), "bar-value")
                with box("span", "track").props("aria-hidden=true"):
                    box("span", "fill").style(f"width: {100 * min(max(share, 0.0), 1.0):.2f}%")


def scale(value: float, low: float, high: float, note: str, interval: tuple[float, float] | None = None) -> None:
    """A number between `low` and `high`, with the interval around it; the note says what lies between them."""
    low = min(low, value, *(interval or ()))
    high = max(high, value, *(interval or ()))
    width = (high - low) or 1.0

    def at(x: float) -> float:
        return 100 * (x - low) / width

    with box("div", "scale").props("aria-hidden=true"):
        with box("span", "track"):
            if interval is not None:
                left, right = map(at, interval)
                box("span", "range").style(f"left: {left:.2f}%; width: {right - left:.2f}%")
            box("span", "point").style(f"left: {at(value):.2f}%")
        with box("div", "ends"):
            words("span", f"{low:.3g}")
            words("span", note)
            words("span", f"{high:.3g}")


def marked(parts: Sequence[Piece], labels: Sequence[str]) -> None:
    """A text with its spans marked: a tint for each label, and the label's name behind the words."""
    with box("p", "marked"):
        for part in parts:
            if not part.label:
                words("span", part.text)
                continue
            tint = labels.index(part.label) % TINTS if part.label in labels else 0
            with box("mark", f"tint{tint}"):
                words("span", part.text)
                words("span", part.label, "span-label")
