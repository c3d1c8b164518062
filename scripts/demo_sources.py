"""The hand-written sentences in src/attentune/demo/sources, read and divided into the two splits.

Every third sentence of a list belongs to the test split, and the lists of values (products, persons, days...) are
treated alike: no sentence and no value is ever used on both sides.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

DEMO = Path(__file__).resolve().parents[1] / "src" / "attentune" / "demo"
SOURCES = DEMO / "sources"

INTENTS = (
    "track_order", "damaged_item", "wrong_item", "return_item", "refund_status", "cancel_order",
    "change_delivery", "payment_problem", "technical_fault", "account_access", "product_question", "warranty_claim",
)  # fmt: skip
SENTIMENTS = ("negative", "neutral", "positive")
OUTCOMES = ("refunded", "replaced", "resolved", "escalated", "abandoned")
KINDS = ("order", "product", "date", "person", "amount")

Item = TypeVar("Item")


@dataclass(frozen=True)
class Message:
    """What a customer writes, and the reply that answers it."""

    intent: str
    text: str
    reply: str
    toned: bool  # it carries a feeling or a hurry of its own, so that no such label can be put on it from outside


@dataclass(frozen=True)
class Paragraph:
    """One mail of a long thread."""

    role: str
    stage: str
    intent: str
    outcome: str
    text: str


@dataclass(frozen=True)
class Pool:
    """All sentences and values of one split."""

    messages: dict[str, list[Message]]
    sentiment: dict[str, list[str]]
    urgency: list[tuple[float, str]]
    evasions: dict[str, list[str]]
    threads: list[Paragraph]
    asides: list[str]
    openers: list[str]
    closings: list[str]
    values: dict[str, list[str]]


def share(items: Sequence[Item], split: str) -> list[Item]:
    """Every third item to test, the others to train."""
    return [item for index, item in enumerate(items) if (index % 3 == 2) == (split == "test")]


def lines(name: str) -> list[str]:
    r"""The lines of a source file without its comments; a written ``\n`` becomes a line break."""
    text = (SOURCES / name).read_text(encoding="utf-8")
    return [line.replace("\\n", "\n") for line in text.splitlines() if line and not line.startswith("#")]


def records(name: str) -> list[dict[str, Any]]:
    """The rows of a JSONL source file."""
    return [json.loads(line) for line in (SOURCES / name).read_text(encoding="utf-8").splitlines()]


def read_messages(intent: str) -> list[Message]:
    """Messages and the replies below them; a leading ``~`` marks a message with a tone of its own."""
    found = lines(f"messages/{intent}.txt")
    pairs = zip(found[::2], found[1::2], strict=True)
    return [
        Message(intent, text.removeprefix("~ "), reply.removeprefix("  -> "), text[0] == "~") for text, reply in pairs
    ]


def read_urgency() -> list[tuple[float, str]]:
    """Clauses with the hurry that a person would read in them, 0 to 1, in its order so that the splits are alike."""
    return sorted((float(value), text) for value, text in (line.split(" | ", 1) for line in lines("urgency.txt")))


def read_evasions(split: str) -> dict[str, list[str]]:
    """Replies that touch the intent and answer nothing."""
    texts: dict[str, list[str]] = {intent: [] for intent in INTENTS}
    for record in records("evasions.jsonl"):
        texts[record["intent"]].append(record["text"])
    return {intent: share(found, split) for intent, found in texts.items()}


def read_threads(split: str) -> list[Paragraph]:
    """The paragraphs of the long threads, divided within each kind of them."""
    groups: dict[tuple[str, str, str], list[Paragraph]] = {}
    for record in records("threads.jsonl"):
        paragraph = Paragraph(**record)
        groups.setdefault((paragraph.stage, paragraph.role, paragraph.outcome), []).append(paragraph)
    return [paragraph for group in groups.values() for paragraph in share(group, split)]


def read_pool(split: str) -> Pool:
    """Everything that the split ``train`` or ``test`` may be made of."""
    return Pool(
        messages={intent: share(read_messages(intent), split) for intent in INTENTS},
        sentiment={tone: share(lines(f"sentiment/{tone}.txt"), split) for tone in SENTIMENTS},
        urgency=share(read_urgency(), split),
        evasions=read_evasions(split),
        threads=read_threads(split),
        asides=share(lines("asides.txt"), split),
        openers=share(lines("openers.txt"), split),
        closings=share(lines("closings.txt"), split),
        values={kind: share(lines(f"values/{kind}.txt"), split) for kind in KINDS},
    )
