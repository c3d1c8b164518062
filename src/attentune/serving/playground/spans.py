"""A text with spans -> its pieces in order, for marking."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Piece:
    """Some of a text; `label` is that of its span, "" between spans."""

    text: str
    label: str = ""


def pieces(text: str, spans: Sequence[tuple[int, int, str]]) -> list[Piece]:
    """Spans (start, end, label) of a text -> pieces that put together are the text.

    Where two spans overlap the one that begins first keeps what is common; empty ones are left out.
    """
    found: list[Piece] = []
    at = 0
    for start, end, label in sorted(spans):
        start, end = max(start, at), min(end, len(text))
        if start >= end:
            continue
        found += [Piece(text[at:start]), Piece(text[start:end], label)]
        at = end
    found.append(Piece(text[at:]))
    return [piece for piece in found if piece.text]
