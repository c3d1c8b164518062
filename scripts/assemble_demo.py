"""Assemble the demo tasks in src/attentune/demo from the hand-written sentences in its sources folder.

python scripts/assemble_demo.py            write the train and test file of every task
python scripts/assemble_demo.py --check    exit with 1 when a file differs from what would be written
"""

import argparse
import gzip
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

from demo_prose import Deck, Draw, Run, Slots, join, lowered, plain, tagged
from demo_sources import DEMO, INTENTS, OUTCOMES, SENTIMENTS, Message, Paragraph, Pool, read_pool

SPLITS = ("train", "test")
Row = dict[str, object]

# How much the matter itself hurries before any clause says so; 0.35 is the middle.
MATTER = {
    "track_order": 0.35, "damaged_item": 0.45, "wrong_item": 0.40, "return_item": 0.20, "refund_status": 0.35,
    "cancel_order": 0.50, "change_delivery": 0.50, "payment_problem": 0.45, "technical_fault": 0.45,
    "account_access": 0.45, "product_question": 0.10, "warranty_claim": 0.30,
}  # fmt: skip

# A reply to one of these could also pass as an answer to another of the same group.
NEIGHBOURS = (
    {"damaged_item", "wrong_item", "warranty_claim", "technical_fault"},
    {"damaged_item", "wrong_item", "return_item", "refund_status"},
    {"return_item", "refund_status", "cancel_order", "payment_problem"},
    {"track_order", "change_delivery", "cancel_order", "wrong_item"},
)
# Here a reply is so particular that it answers no other message of its intent.
PARTICULAR = ("product_question", "technical_fault")

# Matters that can end in each of the outcomes.
THREAD_INTENTS = ("damaged_item", "wrong_item", "technical_fault", "warranty_claim", "track_order")
SHORTEST = 600
GREETED = re.compile(r"(hi|hey|hello|dear|good|forwarded|sent from)\b", re.IGNORECASE)


def calm(pool: Pool) -> list[Message]:
    """The messages that leave feeling and hurry to the clauses around them."""
    return [message for intent in INTENTS for message in pool.messages[intent] if not message.toned]


class Writer:
    """Puts messages in the shape of mails, with the sentences of one split."""

    def __init__(self, draw: Draw, pool: Pool) -> None:
        self.draw = draw
        self.pool = pool
        self.openers = Deck(draw, pool.openers)
        self.closings = Deck(draw, pool.closings)
        self.asides = Deck(draw, pool.asides)
        self.written: set[str] = set()

    def slots(self) -> Slots:
        return Slots(self.draw, self.pool.values)

    def mail(self, message: Message, clauses: list[str], dressed: float) -> list[Run]:
        """The message among its clauses, at times with a salutation or a signature; never the same mail twice."""
        while True:
            pieces = [self.slots().fill(clause) for clause in clauses]
            pieces.insert(int(self.draw.random() * (len(pieces) + 1)), self.slots().fill(message.text))
            if self.draw.chance(dressed) and not GREETED.match(message.text):
                pieces.insert(0, self.slots().fill(self.openers.deal()))
            if self.draw.chance(dressed):
                pieces.append(self.slots().fill(self.closings.deal()))
            runs = join(self.draw, pieces)
            runs = lowered(runs) if self.draw.chance(0.12) else runs
            if plain(runs) not in self.written:
                self.written.add(plain(runs))
                return runs


def intent(draw: Draw, pool: Pool, split: str) -> list[Row]:
    """What the customer wants; a remark on some other matter stands beside three messages in ten."""
    writer = Writer(draw, pool)
    rows: list[Row] = []
    for label in INTENTS:
        messages = Deck(draw, pool.messages[label])
        for _ in range(70 if split == "train" else 24):
            clauses = [writer.asides.deal()] if draw.chance(0.3) else []
            rows.append({"text": plain(writer.mail(messages.deal(), clauses, 0.4)), "label": label})
    return rows


def sentiment(draw: Draw, pool: Pool, split: str) -> list[Row]:
    """How the customer feels about the shop; plain facts stand between the feelings."""
    writer = Writer(draw, pool)
    messages = Deck(draw, calm(pool))
    decks = {tone: Deck(draw, pool.sentiment[tone]) for tone in SENTIMENTS}
    rows: list[Row] = []
    for label in SENTIMENTS:
        for _ in range(300 if split == "train" else 100):
            clauses = [decks[label].deal() for _ in range(2 if draw.chance(0.3) else 1)]
            if label != "neutral" and draw.chance(0.4):
                clauses.insert(0, decks["neutral"].deal())
            rows.append({"text": plain(writer.mail(messages.deal(), draw.shuffled(clauses), 0.3)), "label": label})
    return rows


def urgency(draw: Draw, pool: Pool, split: str) -> list[Row]:
    """How soon somebody must act, 0 to 1: what the clause says, moved a little by the matter."""
    writer = Writer(draw, pool)
    messages = Deck(draw, calm(pool))
    clauses = Deck(draw, pool.urgency)
    facts = Deck(draw, pool.sentiment["neutral"])
    rows: list[Row] = []
    for _ in range(720 if split == "train" else 240):
        message = messages.deal()
        value, texts = MATTER[message.intent], list[str]()
        if draw.chance(0.9):
            said, text = clauses.deal()
            value, texts = said + 0.2 * (value - 0.35), [text]
        if draw.chance(0.3):
            texts.append(facts.deal())
        text = plain(writer.mail(message, draw.shuffled(texts), 0.3))
        rows.append({"text": text, "label": round(min(max(value, 0.0), 1.0), 2)})
    return rows


def entities(draw: Draw, pool: Pool, split: str) -> list[Row]:
    """Order ids, products, days, persons and amounts as BIO tags; every second mail holds two messages."""
    writer = Writer(draw, pool)
    messages = Deck(draw, [message for name in INTENTS for message in pool.messages[name]])
    rows: list[Row] = []
    for _ in range(720 if split == "train" else 240):
        second = [messages.deal().text] if draw.chance(0.5) else []
        tokens, tags = tagged(writer.mail(messages.deal(), second, 0.6))
        rows.append({"tokens": tokens, "tags": tags})
    return rows


def strangers(name: str) -> list[str]:
    """The intents whose replies can't pass as an answer to a message of this intent."""
    near = {other for group in NEIGHBOURS if name in group for other in group}
    return [other for other in INTENTS if other != name and other not in near]


def answered(draw: Draw, pool: Pool, split: str) -> list[Row]:
    """Each message twice: with the reply that answers it, and with one that doesn't."""
    del split
    evasions = {name: Deck(draw, pool.evasions[name]) for name in INTENTS}
    replies = {name: Deck(draw, [message.reply for message in pool.messages[name]]) for name in INTENTS}

    def miss(message: Message) -> str:
        name = message.intent
        if draw.chance(0.4):
            return evasions[name].deal()
        if name in PARTICULAR and draw.chance(0.6):
            other = replies[name].deal()
            return other if other != message.reply else replies[name].deal()
        return replies[draw.pick(strangers(name))].deal()

    rows: list[Row] = []
    for message in (message for name in INTENTS for message in pool.messages[name]):
        for label, reply in (("yes", message.reply), ("no", miss(message))):
            slots = Slots(draw, pool.values)
            text = plain(slots.fill(message.text))
            rows.append({"text": text, "text_pair": plain(slots.fill(reply)), "label": label})
    return rows


class Stock:
    """The paragraphs that one thread can still take."""

    def __init__(self, draw: Draw, pool: Pool, intent: str, outcome: str) -> None:
        fitting = [p for p in pool.threads if p.intent in ("any", intent) and p.outcome in ("any", outcome)]
        self.left = draw.shuffled(fitting)

    def take(self, role: str, *stages: str) -> Paragraph:
        """The next one of the first stage that has any left."""
        ranked = sorted(self.left, key=lambda p: (p.role != role, stages.index(p.stage) if p.stage in stages else 9))
        self.left.remove(ranked[0])
        return ranked[0]


def length(paragraphs: list[Paragraph]) -> int:
    """Words, without the name of the writer that stands before each mail."""
    return sum(len(paragraph.text.split()) for paragraph in paragraphs)


def plot(draw: Draw, stock: Stock, first: Paragraph) -> list[Paragraph]:
    """The mails of a thread in order. Three times in four the turn comes near the end, else in the middle."""
    late = draw.chance(0.75)
    target = SHORTEST + 60 + int((1150 if late else 750) * draw.random() ** 2)
    sides = ["customer", "agent"] if draw.chance(0.5) else ["agent", "customer"]
    turns = [stock.take(side, "turn") for side in sides[: 1 if draw.chance(0.6) else 2]]
    last = [stock.take(side, "closing") for side in sides[: int(draw.random() * 3)]]
    body = [first, stock.take("agent", "opening")]
    tail: list[Paragraph] = []
    while length(body + turns + tail + last) < target:
        # After an early turn people only chat: an open question would take the outcome back.
        chat = not late and length(tail) < length(body)
        part = tail if chat else body
        role = "customer" if (part or turns)[-1].role == "agent" else "agent"
        aside = chat or (late and draw.chance(0.25))
        part.append(stock.take(role, *(("digression", "middle") if aside else ("middle", "digression"))))
    return body + turns + tail + last


def outcome(draw: Draw, pool: Pool, split: str) -> list[Row]:
    """How a long thread ended: told by one or two mails among many that speak of what might be."""
    messages = Deck(draw, [message for name in THREAD_INTENTS for message in pool.messages[name]])
    names = {"customer": "Customer", "agent": "Support"}
    rows: list[Row] = []
    for label in OUTCOMES:
        for _ in range(120 if split == "train" else 40):
            message = messages.deal()
            first = Paragraph("customer", "opening", message.intent, "any", message.text)
            sides = {role: Slots(draw, pool.values) for role in names}
            mails: list[str] = []
            for paragraph in plot(draw, Stock(draw, pool, message.intent, label), first):
                slots = sides[paragraph.role]
                slots.bound.pop("date", None)
                mails.append(f"{names[paragraph.role]}: {plain(slots.fill(paragraph.text))}")
                for shared in ("product", "order", "amount"):
                    for side in sides.values():
                        side.bound.setdefault(shared, slots.value(shared, shared))
            rows.append({"text": "\n\n".join(mails), "label": label})
    return rows


TASKS: dict[str, Callable[[Draw, Pool, str], list[Row]]] = {
    "intent": intent,
    "sentiment": sentiment,
    "urgency": urgency,
    "answered": answered,
    "entities": entities,
    "outcome": outcome,
}
COMPRESSED = ("outcome",)


def content(task: str, split: str) -> str:
    """The JSONL text of one file."""
    draw = Draw(f"{task} {split}")
    rows = draw.shuffled(TASKS[task](draw, read_pool(split), split))
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def target(task: str, split: str) -> Path:
    """Where that file lies."""
    return DEMO / task / f"{split}.jsonl{'.gz' if task in COMPRESSED else ''}"


def write(path: Path, text: str) -> None:
    """Write the file, without a time in the header of a compressed one."""
    path.parent.mkdir(exist_ok=True)
    data = text.encode()
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)


def committed(path: Path) -> str | None:
    """The text of the file as it is; compressed ones are compared unpacked, since zlib's builds pack differently."""
    if not path.exists():
        return None
    data = path.read_bytes()
    return (gzip.decompress(data) if path.suffix == ".gz" else data).decode()


def main() -> int:
    """Write all files, or compare them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare the files and write nothing")
    check = parser.parse_args().check
    stale: list[Path] = []
    for task in TASKS:
        for split in SPLITS:
            text, path = content(task, split), target(task, split)
            if committed(path) == text:
                continue
            stale.append(path)
            if not check:
                write(path, text)
    for path in stale:
        print(f"{'differs' if check else 'wrote'}: {path.relative_to(DEMO.parents[2])}")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
