"""Which columns hold a text and what is to be written from it: common names, and values that are texts."""

from collections.abc import Sequence
from typing import Any, cast

from attentune.tasks import asked

WRITTEN = (
    ("source", "target"),
    ("source", "targets"),
    ("source", "references"),
    ("meaning_representation", "human_reference"),
    ("meaning_representation", "ref"),
    ("mr", "ref"),
    ("input", "output"),
    ("input", "target"),
    ("input", "targets"),
    ("input_text", "target_text"),
    ("document", "summary"),
    ("article", "highlights"),
    ("article", "summary"),
    ("dialogue", "summary"),
    ("text", "summary"),
    ("instruction", "response"),
    ("prompt", "completion"),
)


def find(names: Sequence[str]) -> tuple[str, str] | None:
    """The column of the text and that of what is written from it, where the names are known ones."""
    known = {name.lower(): name for name in reversed(names)}
    return next(((known[a], known[b]) for a, b in WRITTEN if a in known and b in known), None)


def other_name(names: Sequence[str], text: str, written: str) -> str | None:
    """The column of what is written from `text` in a split that has none named `written`: a `targets` for a `target`.

    Else a known name that goes with `text`.
    """
    known = {name.lower(): name for name in reversed(names) if name != text}
    one = written.lower().removesuffix("s")
    return asked.first(known, (one, f"{one}s", *(b for a, b in WRITTEN if a == text.lower())))


def are_texts(values: Sequence[Any]) -> bool:
    """Whether these are texts rather than classes: most of several words, and most of them different."""
    texts = [" | ".join(map(str, cast("list[Any]", v))) if isinstance(v, list) else v for v in values]
    if not texts or not all(isinstance(text, str) for text in texts):
        return False
    return len(set(texts)) > len(texts) / 2 and sum(" " in text for text in texts) > len(texts) / 2
