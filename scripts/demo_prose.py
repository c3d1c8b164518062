"""Seeded choices, slots filled with values, and sentences joined to one text that remembers its entities.

Only ``random.Random.random`` is called, the one method whose sequence Python promises to keep, so that the rows are the
same on every machine and version.
"""

import random
import re
from collections.abc import Iterable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")
Run = tuple[str, str | None]  # a piece of text, and the kind of entity that it names

HOLE = re.compile(r"\{(?P<slot>(?P<kind>[a-z]+)\d?)\}|\[(?P<literal>[^|\]]+)\|(?P<tag>[A-Z]+)\]")
ARTICLE = re.compile(r"(^|\W)[Aa] $")
OPENING, CLOSING = "([{\"'>", ".,;:!?)]}\"'"


class Draw:
    """A seeded source of choices."""

    def __init__(self, seed: str) -> None:
        self.random = random.Random(seed).random

    def chance(self, share: float) -> bool:
        return self.random() < share

    def pick(self, items: Sequence[Item]) -> Item:
        return items[int(self.random() * len(items))]

    def shuffled(self, items: Iterable[Item]) -> list[Item]:
        left = list(items)
        return [left.pop(int(self.random() * len(left))) for _ in range(len(left))]


class Deck(Generic[Item]):
    """Items dealt in random order, each of them once before any comes again."""

    def __init__(self, draw: Draw, items: Sequence[Item]) -> None:
        self.draw = draw
        self.items = items
        self.left: list[Item] = []

    def deal(self) -> Item:
        self.left = self.left or self.draw.shuffled(self.items)
        return self.left.pop()


class Slots:
    """The values of one conversation: the same slot is always filled alike, different slots differently."""

    def __init__(self, draw: Draw, values: dict[str, list[str]]) -> None:
        self.draw = draw
        self.values = values
        self.bound: dict[str, str] = {}

    def value(self, slot: str, kind: str) -> str:
        while slot not in self.bound:
            value = self.draw.pick(self.values[kind])
            if value not in self.bound.values():
                self.bound[slot] = value
        return self.bound[slot]

    def fill(self, template: str) -> list[Run]:
        """``a {product} from {date}`` or ``a [lamp|PRODUCT]`` -> runs; the lamp is the {product} from then on."""
        runs: list[Run] = []
        named: dict[str, str] = {}
        end = 0
        for hole in HOLE.finditer(template):
            before = template[end : hole.start()]
            if hole["literal"]:
                value, tag = hole["literal"], hole["tag"]
                named[tag.lower()] = value
            else:
                value, tag = self.value(hole["slot"], hole["kind"]), hole["kind"].upper()
            if ARTICLE.search(before) and value[0] in "aeioAEIO":
                before = f"{before[:-1]}n "
            runs += [(before, None), (value, tag)]
            end = hole.end()
        self.bound = named | self.bound
        return [*runs, (template[end:], None)]


def plain(runs: Iterable[Run]) -> str:
    """The text of the runs."""
    return "".join(text for text, _ in runs)


def join(draw: Draw, pieces: Sequence[list[Run]]) -> list[Run]:
    """Sentences one after the other, as people put them: on one line or several."""
    runs: list[Run] = []
    for piece in pieces:
        if runs:
            finished = plain(runs)[-1] in ".!?,:"
            runs.append((draw.pick([" ", " ", "\n"] if finished else [". ", "\n"]), None))
        runs += piece
    return runs


def lowered(runs: Iterable[Run]) -> list[Run]:
    """The same in the lower case of people in a hurry."""
    return [(text.lower(), tag) for text, tag in runs]


def spans(text: str) -> list[tuple[int, int]]:
    """Where the tokens lie: words between spaces, the punctuation around them on its own."""
    found: list[tuple[int, int]] = []
    for word in re.finditer(r"\S+", text):
        start, end = word.span()
        while end - start > 1 and text[start] in OPENING:
            found.append((start, start + 1))
            start += 1
        tail: list[tuple[int, int]] = []
        while end - start > 1 and text[end - 1] in CLOSING:
            tail.insert(0, (end - 1, end))
            end -= 1
        found += [(start, end), *tail]
    return found


def tagged(runs: Sequence[Run]) -> tuple[list[str], list[str]]:
    """Runs -> tokens and their BIO tags."""
    text = plain(runs)
    entities: list[tuple[int, int, str]] = []
    position = 0
    for piece, tag in runs:
        if tag:
            entities.append((position, position + len(piece), tag))
        position += len(piece)
    tokens = [text[start:end] for start, end in spans(text)]
    tags = ["O"] * len(tokens)
    for first, last, tag in entities:
        inside = [index for index, (start, end) in enumerate(spans(text)) if start < last and end > first]
        for index in inside:
            tags[index] = f"{'B' if index == inside[0] else 'I'}-{tag}"
    return tokens, tags
