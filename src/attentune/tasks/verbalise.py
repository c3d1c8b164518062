"""Classes as words in a gap: "{text} It was {mask}." and the scores that a masked language model gives the words.

Pattern-exploiting training (Schick and Schütze 2021, arXiv 2001.07676) asks few-shot questions in this form; so did the
authors of tiny-attention adapters on FewGLUE.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, cast

from transformers import PreTrainedTokenizerBase

from attentune.errors import ConfigError, UnsupportedError
from attentune.tasks.cells import is_whole
from attentune.tasks.classify import Classification
from attentune.tasks.sources import Row
from attentune.tasks.task import Features

SINGLE, PAIR = "{text} It was {mask}.", "{text} ? {mask} , {text_pair}"
"""The templates of `auto`, for one text and for pairs."""
GAP = re.compile(r"\{(text|text_pair|mask)\}")
PAIR_WORDS = {
    "entailment": "yes", "contradiction": "no", "neutral": "maybe", "not_entailment": "no", "true": "yes", "false": "no"
}  # fmt: skip
"""Words for class names of inference and yes-or-no questions, which answer the question mark of PAIR."""


@dataclass(frozen=True)
class Cloze(Classification):
    """Exactly one class a row, by the word that fits the gap best. Answers are those of Classification."""

    template: str = SINGLE
    words: tuple[str, ...] = ()
    """The word of each class, in the order of `labels`; each is one token."""

    def encode(self, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], max_length: int) -> list[Features]:
        """Texts -> filled templates; where they are too long the texts are cut, the longer one first, not the rest."""
        texts = [self._texts(row, tokenizer) for row in rows]
        cut: set[int] = set()
        left = list(range(len(rows)))
        found: dict[int, dict[str, list[int]]] = {}
        while left:
            encoded = tokenizer([self._fill(texts[i], tokenizer) for i in left], truncation=False, verbose=False)
            for place, i in enumerate(left):
                found[i] = {name: list(encoded[name][place]) for name in encoded}
            left = [i for i in left if len(found[i]["input_ids"]) > max_length]
            for i in left:
                texts[i] = _shortened(texts[i], len(found[i]["input_ids"]) - max_length, tokenizer, max_length)
            cut.update(left)
        return [
            Features((found[i],), self.target(row["label"]) if "label" in row else None, truncated=i in cut)
            for i, row in enumerate(rows)
        ]

    def word_ids(self, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """The token of each class's word."""
        return [cast("int", _token(word, tokenizer)) for word in self.words]

    def _texts(self, row: Row, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
        # A text that holds the mask itself would open a second gap.
        names = ("text", "text_pair") if self.pair else ("text",)
        return {name: row[name].replace(cast("str", tokenizer.mask_token), " ") for name in names}

    def _fill(self, texts: Mapping[str, str], tokenizer: PreTrainedTokenizerBase) -> str:
        values = {**texts, "mask": cast("str", tokenizer.mask_token)}
        return GAP.sub(lambda gap: values[gap[1]], self.template)

    def to_card(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {**super().to_card(), "template": self.template, "words": list(self.words)}

    @classmethod
    def from_card(cls, card: Mapping[str, Any]) -> Self:
        """The task of a card."""
        found = cls(tuple(card["labels"]), bool(card["pair"]), str(card["template"]), tuple(map(str, card["words"])))
        check_template(found.template, found.pair)
        if len(found.words) != len(found.labels):
            raise ConfigError(f"each of {len(found.labels)} classes has a word, found {len(found.words)}")
        return found


def cloze_of(
    task: Classification, tokenizer: PreTrainedTokenizerBase, template: str | None = None, words: Sequence[str] = ()
) -> Cloze:
    """The same task with a gap. `words` are `class=word`; what is not named is the class's own name.

    Raises:
        ConfigError: the template lacks a place, or a class has no word of one token of its own.
        UnsupportedError: the tokenizer has no mask token or does not know where in the text its tokens stand.
    """
    if tokenizer.mask_token is None:
        raise UnsupportedError("a template needs a backbone whose tokenizer has a mask token")
    if not tokenizer.is_fast:
        raise UnsupportedError("a template needs a fast tokenizer, which knows where in the text a token stands")
    template = template or (PAIR if task.pair else SINGLE)
    check_template(template, task.pair)
    named = _named(words, task.labels)
    chosen = tuple(named.get(label) or _default(label, task) for label in task.labels)
    tokens: dict[int, str] = {}
    for label, word in zip(task.labels, chosen, strict=True):
        token = _token(word, tokenizer)
        if token is None:
            raise ConfigError(
                f"the word of class {label!r} is one token of the backbone, found {word!r}; name another in task.words"
            )
        if token in tokens:
            raise ConfigError(f"classes {tokens[token]!r} and {label!r} have the same word {word!r}; see task.words")
        tokens[token] = label
    return Cloze(task.labels, task.pair, template, chosen)


def check_template(template: str, pair: bool) -> None:
    """ConfigError unless a template has the gap and a place for each text, once."""
    if sorted(GAP.findall(template)) != sorted(["mask", "text", *["text_pair"] * pair]):
        wanted = "{text}, {text_pair} and {mask}" if pair else "{text} and {mask}"
        raise ConfigError(f"a template has {wanted} once each, found {template!r}")


def _named(words: Sequence[str], labels: Sequence[str]) -> dict[str, str]:
    named: dict[str, str] = {}
    for entry in words:
        label, equals, word = entry.rpartition("=")
        if not equals or label not in labels or not word.strip():
            raise ConfigError(f"task.words wants class=word of the classes {', '.join(labels)}, found {entry!r}")
        named[label] = word.strip()
    return named


def _default(label: str, task: Classification) -> str:
    if is_whole(label):
        raise ConfigError(f"class {label!r} is a number and says nothing in a sentence; name its word in task.words")
    return PAIR_WORDS.get(label.lower(), label) if task.pair else label


def _token(word: str, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The one token of a word in the middle of a text, or None."""
    before, both = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("x", f"x {word}"))
    own = cast("list[int]", both)[len(cast("list[int]", before)) :]
    return own[0] if len(own) == 1 and own[0] != tokenizer.unk_token_id else None


def _shortened(
    texts: Mapping[str, str], excess: int, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> dict[str, str]:
    """The texts without `excess` tokens at their ends, taken where most are left."""
    offsets: dict[str, list[tuple[int, int]]] = {
        name: tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
        for name, text in texts.items()
    }
    kept = {name: len(found) for name, found in offsets.items()}
    if sum(kept.values()) < excess:
        raise ConfigError(f"the template alone does not fit into max_length {max_length}; raise it")
    for _ in range(excess):
        longest = max(kept, key=lambda name: kept[name])
        kept[longest] -= 1
    return {name: _beginning(text, offsets[name], kept[name]) for name, text in texts.items()}


def _beginning(text: str, offsets: Sequence[tuple[int, int]], kept: int) -> str:
    """The text of the first `kept` of its tokens, shorter than the text where that is not all of them."""
    if kept == len(offsets):
        return text
    # Tokens may be parts of one character and end where the next ones do; it goes as a whole.
    return text[: min(offsets[kept - 1][1], offsets[kept][0], len(text) - 1)] if kept else ""
