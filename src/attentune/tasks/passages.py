"""A context in windows of tokens: where a passage of its characters is, and what all its passages score."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from attentune.tasks.task import Features, Logits

Places = NDArray[np.int64]
Scores = NDArray[np.float64]
Offset = tuple[int, int] | None
"""The characters [start, end) of a token; None where it is not of the context."""
SIGN = re.compile(r"\S")
"""Where the text of a passage can begin: some tokenizers count the space before a word to its token."""


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


@dataclass(frozen=True)
class Candidates:
    """What can be answered: K passages, each once, and that there is no answer."""

    spans: Places
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
    scores, first, last = passages(z, window, longest)
    found = [None if offset is None else SIGN.search(features.context, offset[0]) for offset in features.offsets]
    starts = np.array([len(features.context) if sign is None else sign.start() for sign in found])
    ends = np.array([-1 if offset is None else offset[1] for offset in features.offsets])
    spans = np.stack([starts[first], ends[last]], -1)
    has_signs = spans[:, 0] < spans[:, 1]
    spans, scores = spans[has_signs], scores[has_signs]
    order = np.lexsort(spans.T)
    spans, scores = spans[order], scores[order]
    begin = np.flatnonzero(np.append(True, (spans[1:] != spans[:-1]).any(-1))[: len(spans)])
    merged = np.logaddexp.reduceat(scores, begin) if len(begin) else scores
    nones = z[firsts].astype(np.float64).sum(-1)
    return Candidates(spans[begin], merged, float(np.logaddexp.reduce(nones)) if unanswerable else -math.inf)


def passages(z: Logits, window: Places, longest: int) -> tuple[Scores, Places, Places]:
    """All passages of at most `longest` tokens in one window: their scores, first places and last places, [K] each.

    z [L,2]: logits of start and end; window [L]: the window of each place, -1 where it is no part of the context. The
    score is the sum of both logits.
    """
    starts, ends = z[:, 0].astype(np.float64), z[:, 1].astype(np.float64)
    first = np.concatenate([np.arange(len(z) - more) for more in range(min(longest, len(z)))])
    last = np.concatenate([np.arange(more, len(z)) for more in range(min(longest, len(z)))])
    inside = (window[first] >= 0) & (window[first] == window[last])
    first, last = first[inside], last[inside]
    return starts[first] + ends[last], first, last


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
