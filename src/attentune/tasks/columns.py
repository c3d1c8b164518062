"""Which column holds what, and what kind of task that makes: guessed, shown to the user, or named by the user."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

from attentune.errors import ConfigError, DataError
from attentune.tasks import asked, written

KINDS = (
    "classification", "multilabel", "regression", "tagging", "question_answering", "multiple_choice", "generation",
)  # fmt: skip

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
    """The input columns (text; text and its pair; tokens; question and context) and the column of what is to learn."""

    inputs: tuple[str, ...]
    label: str | None = None
    start: str | None = None
    """Where answers start, for question answering, if the column of the answers does not say it itself."""
    choices: tuple[str, ...] = ()
    """For multiple choice: one column of lists, or one column for each choice."""

    def to_card(self) -> dict[str, Any]:
        """As plain values for a task card."""
        return asdict(self)

    @classmethod
    def from_card(cls, card: dict[str, Any]) -> "Columns":
        """The columns of a task card."""
        return cls(tuple(card["inputs"]), card["label"], card["start"], tuple(card["choices"]))

    @property
    def pair(self) -> bool:
        """Whether a row is a pair of texts."""
        return len(self.inputs) == 2

    def shown(self) -> str:
        """For the user's eyes: 'text + reply -> label'."""
        choices = f" + one of {', '.join(self.choices)}" if self.choices else ""
        start = f" at {self.start}" if self.start else ""
        return f"{' + '.join(self.inputs)}{choices} -> {self.label or 'nothing'}{start}"


def choose(
    names: Sequence[str],
    inputs: Sequence[str] = (),
    label: str | None = None,
    labelled: bool = True,
    kind: str | None = None,
    choices: Sequence[str] = (),
) -> Columns:
    """The columns of a table with these names: the named ones, the others guessed from common names of the kind."""
    for name in [*inputs, *([label] if label else []), *choices]:
        if name not in names:
            raise DataError(f"no column {name!r}; the columns are {', '.join(names)}")
    if label in (*inputs, *choices):
        raise DataError(f"column {label!r} cannot be both read and learned; the columns are {', '.join(names)}")
    if len(inputs) > 2:
        raise ConfigError(f"a row has one text or a pair of texts, found {len(inputs)} columns: {', '.join(inputs)}")
    if kind == "question_answering":
        return _choose_answers(names, inputs, label, labelled)
    if kind == "multiple_choice":
        return _choose_choices(names, inputs, label, labelled, choices)
    if not inputs and label is None and labelled and kind in (None, "generation"):
        named = written.find(names)
        if named:
            return Columns(named[:1], named[1])
    chosen = tuple(inputs) or _guess_inputs(names, label)
    if not label and labelled:
        label = _guess_label([name for name in names if name not in chosen], chosen)
        if label is None:
            raise DataError(f"no column looks like labels; the columns are {', '.join(names)}: name the one to learn")
    return Columns(chosen, label)


def _choose_answers(names: Sequence[str], inputs: Sequence[str], label: str | None, labelled: bool) -> Columns:
    if inputs and len(inputs) != 2:
        raise ConfigError(f"question answering reads a question and a context, found the column {inputs[0]} alone")
    chosen = tuple(inputs) or asked.find_context([name for name in names if name != label])
    if not labelled:
        return Columns(chosen, None)
    answers, start = asked.find_answers([name for name in names if name not in chosen])
    if not (label or answers):
        raise DataError(f"no column looks like answers; the columns are {', '.join(names)}: name the one to learn")
    return Columns(chosen, label or answers, start)


def _choose_choices(
    names: Sequence[str], inputs: Sequence[str], label: str | None, labelled: bool, choices: Sequence[str]
) -> Columns:
    offered = tuple(choices) or asked.find_choices([name for name in names if name not in (*inputs, label)])
    if not offered:
        raise DataError(
            f"no columns look like choices; the columns are {', '.join(names)}: name them, choices=[...] of the recipe"
        )
    rest = [name for name in names if name not in (*offered, label)]
    chosen = tuple(inputs) or asked.find_asked(rest)
    right = label or asked.find_right([name for name in rest if name not in chosen])
    if labelled and right is None:
        raise DataError(f"no column says which choice is right; the columns are {', '.join(names)}: name it")
    return Columns(chosen, right if labelled else None, choices=offered)


def _guess_inputs(names: Sequence[str], label: str | None) -> tuple[str, ...]:
    known = {name.lower(): name for name in reversed(names) if name != label}
    tokens = asked.first(known, TOKENS)
    if tokens and asked.first({name.lower(): name for name in names if name != tokens}, TAGS):
        return (tokens,)
    for first, second in PAIRS:
        if first in known and second in known:
            return known[first], known[second]
    text = asked.first(known, TEXTS) or tokens
    if text is None:
        other = "other " if label else ""
        raise DataError(f"no {other}column looks like text; the columns are {', '.join(names)}: name the one to read")
    return (text,)


def _guess_label(names: Sequence[str], inputs: tuple[str, ...]) -> str | None:
    known = {name.lower(): name for name in reversed(names)}
    is_tokens = len(inputs) == 1 and inputs[0].lower() in TOKENS
    return asked.first(known, TAGS if is_tokens else LABELS) or (names[0] if len(names) == 1 else None)


def guess_kind(inputs: Iterable[Any], labels: Iterable[Any], columns: Columns | None = None) -> str:
    """The kind of task that the values make: token lists -> tagging, lists -> multilabel, fractions -> regression.

    Columns with the names of a text and what is written from it make generation, if most of their values differ.
    """
    labels = list(labels)
    named = columns is not None and columns.label and written.find([columns.inputs[0], columns.label])
    if named and written.are_texts(labels):
        return "generation"
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
    except (TypeError, ValueError, OverflowError):
        return False
    return number - number == 0
