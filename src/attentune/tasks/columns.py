"""Which column holds what, and what kind of task that makes: guessed, shown to the user, or named by the user."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

from attentune.errors import ConfigError, DataError

KINDS = ("classification", "multilabel", "regression", "tagging")

PAIRS = (
    ("text", "text_pair"),
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("text1", "text2"),
    ("question", "sentence"),
    ("question", "passage"),
    ("question", "answer"),
    ("message", "reply"),
    ("query", "document"),
    ("query", "passage"),
    ("text_a", "text_b"),
)
TEXTS = (
    "text", "sentence", "message", "utterance", "content", "review", "question", "query", "document", "comment",
    "tweet", "sms", "email", "body", "input", "sentence1", "premise", "description", "title",
)  # fmt: skip
LABELS = (
    "label", "labels", "intent", "class", "category", "categories", "target", "sentiment", "topic", "topics", "score",
    "rating", "stars", "similarity", "similarity_score", "output", "y", "tags", "coarse_label", "label_text",
)  # fmt: skip
TOKENS = ("tokens", "words")
TAGS = ("tags", "ner_tags", "labels", "slots", "bio", "ner", "pos_tags", "chunk_tags", "label")


@dataclass(frozen=True)
class Columns:
    """The input columns (text; text and its pair; tokens) and the column of labels or tags."""

    inputs: tuple[str, ...]
    label: str | None = None

    def to_card(self) -> dict[str, Any]:
        """As plain values for a task card."""
        return asdict(self)

    @classmethod
    def from_card(cls, card: dict[str, Any]) -> "Columns":
        """The columns of a task card."""
        return cls(tuple(card["inputs"]), card["label"])

    @property
    def pair(self) -> bool:
        """Whether a row is a pair of texts."""
        return len(self.inputs) == 2

    def shown(self) -> str:
        """For the user's eyes: 'text + reply -> label'."""
        return f"{' + '.join(self.inputs)} -> {self.label or 'nothing'}"


def choose(
    names: Sequence[str], inputs: Sequence[str] = (), label: str | None = None, labelled: bool = True
) -> Columns:
    """The columns of a table with these names: the named ones, the others guessed from common names."""
    for name in [*inputs, *([label] if label else [])]:
        if name not in names:
            raise DataError(f"no column {name!r}; the columns are {', '.join(names)}")
    if len(inputs) > 2:
        raise ConfigError(f"a row has one text or a pair of texts, found {len(inputs)} columns: {', '.join(inputs)}")
    chosen = tuple(inputs) or _guess_inputs(names)
    if not label and labelled:
        label = _guess_label([name for name in names if name not in chosen], chosen)
        if label is None:
            raise DataError(f"no column looks like labels; the columns are {', '.join(names)}: name the one to learn")
    return Columns(chosen, label)


def _guess_inputs(names: Sequence[str]) -> tuple[str, ...]:
    known = {name.lower(): name for name in reversed(names)}
    tokens = _first(known, TOKENS)
    if tokens and _first({k: v for k, v in known.items() if v != tokens}, TAGS):
        return (tokens,)
    for first, second in PAIRS:
        if first in known and second in known:
            return known[first], known[second]
    text = _first(known, TEXTS) or tokens
    if text is None:
        raise DataError(f"no column looks like text; the columns are {', '.join(names)}: name the one to read")
    return (text,)


def _guess_label(names: Sequence[str], inputs: tuple[str, ...]) -> str | None:
    known = {name.lower(): name for name in reversed(names)}
    is_tokens = len(inputs) == 1 and inputs[0].lower() in TOKENS
    return _first(known, TAGS if is_tokens else LABELS) or (names[0] if len(names) == 1 else None)


def _first(known: dict[str, str], wanted: Iterable[str]) -> str | None:
    return next((known[name] for name in wanted if name in known), None)


def guess_kind(inputs: Iterable[Any], labels: Iterable[Any]) -> str:
    """The kind of task that the values make: token lists -> tagging, lists -> multilabel, fractions -> regression."""
    labels = list(labels)
    if any(isinstance(value, list) for value in inputs):
        return "tagging"
    if any(isinstance(v, list) for v in labels) or any(isinstance(v, str) and "|" in v for v in labels):
        return "multilabel"
    if any(isinstance(v, float) for v in labels) or _are_fractions(labels):
        return "regression"
    return "classification"


def _are_fractions(labels: list[Any]) -> bool:
    texts = [v for v in labels if isinstance(v, str)]
    return bool(texts) and len(texts) == len(labels) and all(map(is_number, texts)) and any("." in t for t in texts)


def is_number(value: Any) -> bool:
    """Whether the value reads as a finite number."""
    if isinstance(value, bool):
        return False
    try:
        number = float(cast("str", value))
    except (TypeError, ValueError):
        return False
    return number - number == 0
