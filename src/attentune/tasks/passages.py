"""A context in windows of tokens: where a passage of its characters is, and what all its passages score."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from attentune.tasks.task import Features, Logits

Places = NDArray[np.int64]
Characters = NDArray[np.int32]
Scores = NDArray[np.float64]
Offset = tuple[int, int] | None
"""The characters [start, end) of a token; None where it is not of the context."""
PART = 1_000_000
"""Passages that are merged at a time: a long context has tens of millions, and each is several numbers."""


@dataclass(frozen=True)
class Windows(Features):
    """A context in windows, with the characters of each of L tokens."""

    context: str = ""
    offsets: tuple[Offset, ...] = ()

    def places(self) -> tuple[Places, Places]:
        """The window of each place [L], -1 outside of the context; and the first place of each window."""
        lengths = [len(sequence["input_ids"]) for sequence in self.sequences]
        window = np.repeat(np.arange(len(lengths)), lengths)
        window[[offset is None for offset in self.offsets]] = -1
        return window, np.cumsum([0, *lengths[:-1]])

    def characters(self) -> tuple[Characters, Characters]:
        """The character at which a passage begins whose first place is this one, and that at which one ends, [L] each.

        A passage begins with a sign: some tokenizers count the space before a word to its token.
        """
        length, count = len(self.offsets), len(self.context)
        begins = np.fromiter((count if offset is None else offset[0] for offset in self.offsets), np.int32, length)
        ends = np.fromiter((-1 if offset is None else offset[1] for offset in self.offsets), np.int32, length)
        signs = np.flatnonzero(~np.fromiter(map(str.isspace, self.context), bool, count))
        return np.append(signs, count)[np.searchsorted(signs, begins)].astype(np.int32), ends


@dataclass(frozen=True)
class Candidates:
    """What can be answered: K passages, each once, and that there is no answer."""

    spans: Characters
    """[K,2]: the first character, and the one after the last."""
    scores: Scores
    """[K]: logits; a passage that stands in two windows has the sum of both."""
    none: float
    """The logit of "there is no answer"; -inf where that cannot be."""

    @property
    def best(self) -> int | None:
        """Which passage is the likeliest; None where there is none."""
        return int(self.scores.argmax()) if len(self.scores) else None

    @property
    def margin(self) -> float:
        """How far "there is no answer" is above the likeliest passage, in log odds."""
        return self.none - float(self.scores.max())


def candidates(z: Logits, features: Windows, longest: int, unanswerable: bool) -> Candidates:
    """Logits [L,2] of start and end -> all passages of at most `longest` tokens in one window, but for empty ones."""
    window, firsts = features.places()
    starts, ends = features.characters()
    longest = min(longest, max(len(sequence["input_ids"]) for sequence in features.sequences))
    parts = [
        _merged(starts[first], ends[last], scores)
        for scores, first, last in (passages(z, window, longest, at) for at in _parts(window, ends, longest))
    ]
    nones = z[firsts].astype(np.float64).sum(-1)
    return Candidates(
        np.concatenate([spans for spans, _ in parts]),
        np.concatenate([scores for _, scores in parts]),
        float(np.logaddexp.reduce(nones)) if unanswerable else -math.inf,
    )


def passages(z: Logits, window: Places, longest: int, at: Places) -> tuple[Scores, Places, Places]:
    """The passages that end at the places `at`: their scores, first places and last places, [K] each.

    They have at most `longest` tokens in one window. z [L,2]: logits of start and end; window [L]: the window of each
    place, -1 where it is no part of the context. The score is the sum of both logits.
    """
    more = min(longest, len(z))
    last = np.tile(at, more)
    first = last - np.repeat(np.arange(more), len(at))
    inside = (first >= 0) & (window[first] == window[last]) & (window[last] >= 0)
    first, last = first[inside], last[inside]
    return z[first, 0].astype(np.float64) + z[last, 1].astype(np.float64), first, last


def _parts(window: Places, ends: Characters, longest: int) -> Iterable[Places]:
    """The places of the context in the order of their ends, of about PART passages; those of one end stay together."""
    places = np.flatnonzero(window >= 0)
    places = places[np.argsort(ends[places], kind="stable")]
    cuts = np.unique(np.searchsorted(ends[places], ends[places][:: max(1, PART // longest)]))
    return np.split(places, cuts[1:])


def _merged(starts: Characters, ends: Characters, scores: Scores) -> tuple[Characters, Scores]:
    """Each passage with signs once, in the order of the ends, then of the starts: [K,2], [K]."""
    has_signs = starts < ends
    # As one number each: pairs take several times as long to sort and compare.
    spans, scores = (ends.astype(np.int64) << 32 | starts)[has_signs], scores[has_signs]
    order = np.argsort(spans, kind="stable")
    spans, scores = spans[order], scores[order]
    begin = np.flatnonzero(np.append(True, spans[1:] != spans[:-1])[: len(spans)])
    merged = np.logaddexp.reduceat(scores, begin) if len(begin) else scores
    return np.stack([spans[begin], spans[begin] >> 32], -1).astype(np.int32), merged


def tokens_of(
    window: Sequence[Offset], start: int, end: int, is_first: bool = True, is_last: bool = True
) -> tuple[int, int] | None:
    """The first and the last token of the characters [start, end), or None where the window does not hold them whole.

    What stands before the first token of the first window and behind the last one of the last has no token (signs that
    the tokenizer drops).
    """
    at = [i for i, span in enumerate(window) if span is not None]
    spans = [cast("tuple[int, int]", window[i]) for i in at]
    if not spans or (spans[0][0] > start and not is_first) or (spans[-1][1] < end and not is_last):
        return None
    first = next((i for i, (_, e) in zip(at, spans, strict=True) if e > start), None)
    last = next((i for i, (s, _) in zip(reversed(at), reversed(spans), strict=True) if s < end), None)
    return None if first is None or last is None or first > last else (first, last)
