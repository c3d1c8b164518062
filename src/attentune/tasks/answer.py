"""A question and a context -> the passage of the context that answers it, or none.

The question stands before the context. A context that does not fit is cut into windows that share `stride` tokens, each
with the whole question. All windows of a row compete in one softmax (Clark and Gardner 2018, shared normalisation), so
that scores of different windows can be compared; with one window this is the loss of Devlin et al. 2019. Only tokens of
the context compete; where the task knows questions without an answer so does the first token of each window, which
stands for "there is none".
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from attentune.errors import DataError, UnsupportedError
from attentune.evaluation import metrics
from attentune.evaluation.answers import best_threshold, exact_match, word_f1
from attentune.evaluation.metrics import Scores
from attentune.tasks.sources import Row
from attentune.tasks.task import IGNORED, Answer, Features, Head, Inputs, Logits, Task, padded

Places = NDArray[np.int64]
START, END = 1, 2
"""Bits of a target: the first token of the answer, its last one; 0 marks a token that merely competes."""


@dataclass(frozen=True)
class Windows(Features):
    """A context in windows: the characters [start, end) of each of L tokens, None where it is not of the context."""

    context: str = ""
    offsets: tuple[tuple[int, int] | None, ...] = ()

    def places(self) -> tuple[Places, Places]:
        """The window of each place [L], -1 outside of the context; and the first place of each window."""
        lengths = [len(sequence["input_ids"]) for sequence in self.sequences]
        window = np.repeat(np.arange(len(lengths)), lengths)
        window[[offset is None for offset in self.offsets]] = -1
        return window, np.cumsum([0, *lengths[:-1]])

    def characters(self) -> tuple[Places, Places]:
        """The first character of each place and the one after its last, [L] each; -1 outside of the context."""
        return (
            np.array([-1 if offset is None else offset[0] for offset in self.offsets]),
            np.array([-1 if offset is None else offset[1] for offset in self.offsets]),
        )


@dataclass(frozen=True)
class Best:
    """The likeliest answer of a row."""

    span: tuple[int, int] | None
    """Its characters; None where the context has no token."""
    score: float
    """Its probability among all answers that may be given, "there is none" included."""
    none: float
    """The probability of "there is none"."""
    margin: float
    """log(none / score) before calibration."""


@dataclass(frozen=True)
class QuestionAnswering(Task):
    """A passage of the context. Answers: `answer`, its characters `start` and `end`, its `score`, and `no_answer`.

    `score` is the probability of the answer given, `no_answer` that of there being none: 0 where training had no such
    rows. An answer "" with `start` and `end` None says that there is none: `no_answer` is more than `threshold` above
    the best passage, in log odds.
    """

    kind: ClassVar[str] = "question_answering"
    head: ClassVar[Head] = "token"
    several: ClassVar[bool] = True
    has_score: ClassVar[bool] = True
    labels: tuple[str, ...] = ()
    pair: bool = True
    stride: int = 64
    """Tokens that neighbouring windows share."""
    answer_length: int = 30
    """Tokens of an answer, at most."""
    unanswerable: bool = False
    """Whether there are questions without an answer."""
    threshold: float = 0.0

    @property
    def num_outputs(self) -> int:
        """Start and end."""
        return 2

    def encode(self, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], max_length: int) -> list[Features]:
        """Rows with `question` and `context` -> features with a sequence for each window.

        Raises:
            UnsupportedError: the tokenizer does not know where in the text a token stands.
            DataError: a question leaves no room for the context.
        """
        if not rows:
            return []
        if not tokenizer.is_fast:
            raise UnsupportedError("answers need a fast tokenizer, which knows where in the text a token stands")
        self._check_room(tokenizer, [row["question"] for row in rows], max_length)
        encoded = tokenizer(
            [row["question"] for row in rows],
            [row["context"] for row in rows],
            truncation="only_second",
            max_length=max_length,
            stride=self.stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            verbose=False,
        )
        offsets: list[list[tuple[int, int]]] = encoded.pop("offset_mapping")
        windows: list[list[int]] = [[] for _ in rows]
        for i, row in enumerate(cast("list[int]", encoded.pop("overflow_to_sample_mapping"))):
            windows[row].append(i)
        return [
            self._features(
                row,
                tuple({name: list(encoded[name][i]) for name in encoded} for i in at),
                [
                    [
                        span if side == 1 else None
                        for span, side in zip(offsets[i], encoded.sequence_ids(i), strict=True)
                    ]
                    for i in at
                ],
            )
            for row, at in zip(rows, windows, strict=True)
        ]

    def _check_room(self, tokenizer: PreTrainedTokenizerBase, questions: Sequence[str], max_length: int) -> None:
        around = tokenizer.num_special_tokens_to_add(pair=True)
        room = max_length - around - self.stride - 1
        asked = tokenizer(list(questions), add_special_tokens=False, verbose=False)["input_ids"]
        for question, ids in zip(questions, cast("list[list[int]]", asked), strict=True):
            if len(ids) > room:
                shown = question if len(question) <= 60 else question[:57] + "..."
                raise DataError(
                    f"the question {shown!r} has {len(ids)} tokens; with max_length {max_length} and stride "
                    f"{self.stride} there is room for {max(room, 0)}"
                )

    def _features(
        self, row: Row, sequences: tuple[Inputs, ...], offsets: Sequence[Sequence[tuple[int, int] | None]]
    ) -> Windows:
        flat = tuple(offset for window in offsets for offset in window)
        target = self._target(row["answers"], offsets) if "answers" in row else None
        return Windows(sequences, target, context=row["context"], offsets=flat)

    def _target(
        self, answers: Sequence[Mapping[str, Any]], offsets: Sequence[Sequence[tuple[int, int] | None]]
    ) -> list[int]:
        """Of each place: IGNORED where it does not compete, else the bits of START and END of the first answer."""
        target: list[int] = []
        for number, window in enumerate(offsets):
            marks = [IGNORED if offset is None else 0 for offset in window]
            if self.unanswerable:
                marks[0] = 0 if answers else START | END
            found = None
            if answers:
                start = int(answers[0]["start"])
                ends = (number == 0, number == len(offsets) - 1)
                found = tokens_of(window, start, start + len(answers[0]["text"]), *ends)
            if found:
                marks[found[0]] |= START
                marks[found[1]] |= END
            target += marks
        return target

    def target_tensor(self, targets: Sequence[list[int]], length: int) -> Tensor:
        """-> [B,L] bits, -100 where a place does not compete."""
        return torch.tensor([padded(t, length, IGNORED) for t in targets])

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """-log p(start) and -log p(end), their mean: logits [B,L,2], targets [B,L] -> [B].

        Each softmax is over all competing places of the row. Right are the places of the answer in every window that
        holds it whole; a row whose answer no window holds teaches nothing (0).
        """
        z = logits.float()
        least = torch.finfo(z.dtype).min
        each: list[Tensor] = []
        for output, bit in enumerate((START, END)):
            competing, right = targets != IGNORED, (targets != IGNORED) & (targets & bit).bool()
            all_of_them = z[..., output].masked_fill(~competing, least).logsumexp(-1)
            right_ones = z[..., output].masked_fill(~right, least).logsumexp(-1)
            each.append(torch.where(right.any(-1), all_of_them - right_ones, 0.0))
        return (each[0] + each[1]) / 2

    def decode(self, logits: Sequence[Logits], features: Sequence[Features], temperature: float = 1.0) -> list[Answer]:
        """Logits [L,2] a row -> answers."""
        return [self._answer(z, cast("Windows", f), temperature) for z, f in zip(logits, features, strict=True)]

    def _answer(self, z: Logits, features: Windows, temperature: float) -> Answer:
        best = self.best(z, features, temperature)
        none = best.span is None or (self.unanswerable and best.margin > self.threshold)
        start, end = (None, None) if none or best.span is None else best.span
        return {
            "answer": features.context[start:end] if start is not None else "",
            "start": start,
            "end": end,
            "score": best.none if none else best.score,
            "no_answer": best.none,
        }

    def best(self, z: Logits, features: Windows, temperature: float = 1.0) -> Best:
        """The likeliest passage: of all start <= end in one window, at most `answer_length` tokens long."""
        window, firsts = features.places()
        scores, first, last = passages(z, window, self.answer_length)
        nones = z[firsts].astype(np.float64).sum(-1) if self.unanswerable else np.zeros(0)
        if not len(scores):
            return Best(None, 0.0, 1.0, 0.0)
        starts, ends = features.characters()
        top = int(scores.argmax())
        span = int(starts[first[top]]), int(ends[last[top]])
        # What two windows share stands in both of them, and is one passage.
        same = (starts[first] == span[0]) & (ends[last] == span[1])
        total = _log_sum(np.concatenate([scores, nones]) / temperature)
        return Best(
            span,
            score=math.exp(_log_sum(scores[same] / temperature) - total),
            none=math.exp(_log_sum(nones / temperature) - total),
            margin=_log_sum(nones) - _log_sum(scores[same]),
        )

    def fitted(self, logits: Sequence[Logits], features: Sequence[Features], rows: Sequence[Row]) -> Self:
        """With the threshold that is best on these labelled rows, by F1."""
        windows = cast("Sequence[Windows]", features)
        found = [(self.best(z, f), f, row) for z, f, row in zip(logits, windows, rows, strict=True)]
        found = [(best, f, row) for best, f, row in found if best.span]
        if not self.unanswerable or not found:
            return self
        threshold = best_threshold(
            [best.margin for best, _, _ in found],
            [word_f1(f.context[slice(*best.span)], references(row)) for best, f, row in found if best.span],
            [word_f1("", references(row)) for _, _, row in found],
        )
        return replace(self, threshold=threshold)

    def is_right(self, answer: Answer, row: Row) -> bool:
        """Whether it is one of the references, to the letter once both are made plain."""
        return exact_match(answer["answer"], references(row)) == 1.0

    def score(self, answers: Sequence[Answer], rows: Sequence[Row]) -> Scores:
        """F1 and exact match with the best of the references; apart for rows with and without, if there are both."""
        return metrics.score(self.kind, [a["answer"] for a in answers], [references(row) for row in rows])

    def to_card(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {"kind": self.kind, **{name: getattr(self, name) for name in CARD}}

    @classmethod
    def from_card(cls, card: Mapping[str, Any]) -> Self:
        """The task of a card."""
        return cls(**{name: card[name] for name in CARD})


CARD = ("stride", "answer_length", "unanswerable", "threshold")


def references(row: Row) -> list[str]:
    """The texts of a row's reference answers; none: there is no answer."""
    return [answer["text"] for answer in row["answers"]]


def tokens_of(
    window: Sequence[tuple[int, int] | None], start: int, end: int, is_first: bool = True, is_last: bool = True
) -> tuple[int, int] | None:
    """The first and the last token of the characters [start, end), or None where the window does not hold them whole.

    `window` has the characters of each token, None for those outside of the context. What stands before the first token
    of the first window and behind the last one of the last has no token (signs that the tokenizer drops).
    """
    at = [i for i, span in enumerate(window) if span is not None]
    spans = [cast("tuple[int, int]", window[i]) for i in at]
    if not spans or (spans[0][0] > start and not is_first) or (spans[-1][1] < end and not is_last):
        return None
    first = next((i for i, (_, e) in zip(at, spans, strict=True) if e > start), None)
    last = next((i for i, (s, _) in zip(reversed(at), reversed(spans), strict=True) if s < end), None)
    return None if first is None or last is None or first > last else (first, last)


def passages(z: Logits, window: Places, longest: int) -> tuple[NDArray[np.float64], Places, Places]:
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


def _log_sum(values: NDArray[np.float64]) -> float:
    return float(np.logaddexp.reduce(values)) if len(values) else -math.inf
