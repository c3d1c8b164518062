"""A label for every word (BIO) -> labelled spans.

Words are joined by one space and tokenised as one text; a word's label stands at its first token, found through the
tokenizer's character offsets. So lists of words and plain texts take the same path, whatever the tokenizer does with
spaces, and a span can always be cut out of the text.
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from attentune.errors import UnsupportedError
from attentune.evaluation import metrics
from attentune.evaluation.metrics import Scores
from attentune.evaluation.probabilities import softmax
from attentune.tasks.sources import Row
from attentune.tasks.task import IGNORED, Answer, Events, Features, Head, Inputs, Logits, Task, Word, full, padded

WORD = re.compile(r"(?:(?:[^\W\d_]\u0301*\.){2,}|\w[\w\u0301]*(?:[-.,:'’&@/]\w[\w\u0301]*)*|\S)\u0301*")
"""A word of plain text: an abbreviation with dots, letters and digits with inner punctuation, or one other sign.

The acute accent U+0301 stands for all that combines with the sign before it; `_plain` puts it there.
"""
JOINERS = "\u200c\u200d"
"""They combine, and are no marks to Unicode."""


@dataclass(frozen=True)
class Tagging(Task):
    """One tag a word. Answers: `spans` (`text`, `label`, `start`, `end`, `score`); for lists of words also `tags`.

    `start` and `end` count characters of the text, or of the words joined by one space. A span's `score` is the mean
    probability of its words' tags; the answer's `score` is the probability that every tag is right, as if tokens were
    independent: 0 where words are cut off. Tags without B- and I- (parts of speech) make every word a span, but for O.
    """

    kind: ClassVar[str] = "tagging"
    head: ClassVar[Head] = "token"
    has_score: ClassVar[bool] = True
    labels: tuple[str, ...]
    pair: bool = False

    @property
    def outside(self) -> str:
        """The tag of words that no token stands for: O, or the first tag where there is no O."""
        return "O" if "O" in self.labels else self.labels[0]

    def encode(self, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], max_length: int) -> list[Features]:
        """Rows with `tokens` or a plain `text` -> features with one Word for each word."""
        if not rows:
            return []
        if not tokenizer.is_fast:
            raise UnsupportedError("tagging needs a fast tokenizer, which knows where in the text a token stands")
        texts = [row["text"] if "text" in row else " ".join(row["tokens"]) for row in rows]
        encoded = tokenizer(texts, truncation=True, max_length=max_length, return_offsets_mapping=True, verbose=False)
        offsets: list[list[tuple[int, int]]] = encoded.pop("offset_mapping")
        return [
            self._features(
                row, {name: list(encoded[name][i]) for name in encoded}, offsets[i], bool(encoded[i].overflowing)
            )
            for i, row in enumerate(rows)
        ]

    def _features(self, row: Row, inputs: Inputs, offsets: Sequence[tuple[int, int]], more: bool) -> Features:
        """The features of a row; whether its text has `more` tokens than were read."""
        words = align(word_spans(row), offsets)
        target = None
        if "tags" in row:
            target = [IGNORED] * len(offsets)
            for word, tag in zip(words, row["tags"], strict=True):
                if word.position is not None and target[word.position] == IGNORED:
                    target[word.position] = self.labels.index(tag)
        read = max((end for _, end in offsets), default=0)
        cut = more and bool(words) and words[-1].end > read
        return Features((inputs,), target, truncated=cut, words=words)

    def target_tensor(self, targets: Sequence[list[int]], length: int) -> Tensor:
        """-> [B,T] tag numbers, -100 where no word begins."""
        return torch.tensor([padded(t, length, IGNORED) for t in targets])

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy: logits [B,T,C], targets [B,T] -> [B], the mean over a row's words (0 without words)."""
        each = F.cross_entropy(full(logits).transpose(1, 2), targets, reduction="none", ignore_index=IGNORED)
        return each.sum(-1) / (targets != IGNORED).sum(-1).clamp(min=1)

    def decode(self, logits: Sequence[Logits], features: Sequence[Features], temperature: float = 1.0) -> list[Answer]:
        """Logits [T,C] a row -> answers."""
        return [self._answer(softmax(z, temperature), f) for z, f in zip(logits, features, strict=True)]

    def _answer(self, p: Logits, features: Features) -> Answer:
        tags: list[str] = []
        scores: list[float] = []
        read: dict[int, float] = {}
        for word in features.words:
            best = None if word.position is None else int(p[word.position].argmax())
            tag = self.outside if best is None else self.labels[best]
            tags.append(self._carried_on(tag) if word.position in read else tag)
            scores.append(0.0 if best is None else float(p[word.position, best]))
            if word.position is not None:
                read[word.position] = scores[-1]
        cut_off = features.truncated and features.words[-1].position is None
        spans = [_span(features.words[a:b], name, scores[a:b]) for a, b, name in spans_of(tags, self.labels)]
        words = [word.text for word in features.words]
        return {
            "spans": spans,
            "words": words,
            "tags": tags,
            "score": 0.0 if cut_off else float(np.prod(list(read.values()))),
            "truncated": features.truncated,
        }

    def _carried_on(self, tag: str) -> str:
        """The tag of a further word of a token: a span that the token begins goes on."""
        inside = f"I-{tag[2:]}"
        return inside if tag.startswith("B-") and inside in self.labels else tag

    def events(self, logits: Sequence[Logits], features: Sequence[Features]) -> Events | None:
        """Logits [N,C] and tag numbers [N] of the N tokens that stand for words."""
        each = ((i, word.position) for i, f in enumerate(features) for word in f.words if word.position is not None)
        read = list(dict.fromkeys(each))
        if not read:
            return None
        return np.stack([logits[i][t] for i, t in read]), np.array([features[i].target[t] for i, t in read])

    def is_right(self, answer: Answer, row: Row) -> bool:
        """Whether every word has its tag."""
        return answer["tags"] == list(row["tags"])

    def score(self, answers: Sequence[Answer], rows: Sequence[Row]) -> Scores:
        """Entity precision, recall and F1; a word that was cut off counts as untagged."""
        return metrics.score(self.kind, [a["tags"] for a in answers], [row["tags"] for row in rows], self.labels)

    def to_card(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {"kind": self.kind, "labels": list(self.labels)}

    @classmethod
    def from_card(cls, card: Mapping[str, Any]) -> Self:
        """The task of a card."""
        return cls(tuple(card["labels"]))


def word_spans(row: Row) -> list[tuple[str, int, int]]:
    """The words of a row with their characters [start, end) in its text."""
    if "tokens" not in row:
        text = row["text"]
        return [(text[slice(*m.span())], *m.span()) for m in WORD.finditer(_plain(text))]
    spans: list[tuple[str, int, int]] = []
    start = 0
    for token in row["tokens"]:
        spans.append((token, start, start + len(token)))
        start += len(token) + 1
    return spans


def _plain(text: str) -> str:
    """The text with one accent for every character that combines with the one before it; as long as before."""
    if text.isascii():
        return text
    marks = [c for c in set(text) if c in JOINERS or unicodedata.category(c).startswith("M")]
    return text.translate(dict.fromkeys(map(ord, marks), "\u0301"))


def align(words: Sequence[tuple[str, int, int]], offsets: Sequence[tuple[int, int]]) -> tuple[Word, ...]:
    """Words and the characters [start, end) of T tokens -> words with the position of their first token.

    A token belongs to every word that it has a character of. Special tokens are empty, [n, n), and belong to no word.
    """
    first: dict[int, int] = {}
    word = 0
    for position, (start, end) in enumerate(offsets):
        if end <= start:
            continue
        while word < len(words) and words[word][2] <= start:
            word += 1
        for held in range(word, len(words)):
            if words[held][1] >= end:
                break
            first.setdefault(held, position)
    return tuple(Word(text, start, end, first.get(i)) for i, (text, start, end) in enumerate(words))


def spans_of(tags: Sequence[str], labels: Sequence[str]) -> list[tuple[int, int, str]]:
    """Tags -> (first word, word after the last, label) of every span; as in conlleval an I- can open one.

    `labels` are all tags that there are: where they have no prefixes, each word but those with an O is a span.
    """
    if not metrics.is_bio(labels):
        return [(i, i + 1, tag) for i, tag in enumerate(tags) if tag != "O"]
    spans: list[tuple[int, int, str]] = []
    for i, tag in enumerate(tags):
        prefix, _, name = tag.partition("-")
        before = tags[i - 1].partition("-") if i else ("O", "", "")
        joined = prefix in {"I", "E"} and before[0] in {"B", "I"} and before[2] == name
        if joined:
            spans[-1] = (spans[-1][0], i + 1, name)
        elif prefix != "O":
            spans.append((i, i + 1, name))
    return spans


def _span(words: Sequence[Word], label: str, scores: Sequence[float]) -> dict[str, Any]:
    start, end = words[0].start, words[-1].end
    return {"text": " ".join(w.text for w in words), "label": label, "start": start, "end": end,
            "score": float(np.mean(scores))}  # fmt: skip
