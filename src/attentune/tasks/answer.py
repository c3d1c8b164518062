"""A question and a context -> the passage of the context that answers it, or none.

The question stands before the context. A context that does not fit is cut into windows that share `stride` tokens, each
with the whole question. All windows of a row compete in one softmax (Clark and Gardner 2018, shared normalisation), so
that scores of different windows can be compared; with one window this is the loss of Devlin et al. 2019. Only tokens of
the context compete; where the task knows questions without an answer so does the first token of each window, which
stands for "there is none".
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self, cast

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from attentune.errors import DataError, StoreError, UnsupportedError
from attentune.evaluation import metrics
from attentune.evaluation.answers import best_threshold, exact_match, word_f1
from attentune.evaluation.metrics import Scores
from attentune.evaluation.probabilities import softmax
from attentune.tasks.passages import Candidates, Offset, Windows, candidates, tokens_of
from attentune.tasks.sources import Row
from attentune.tasks.task import IGNORED, Answer, Features, Head, Inputs, Logits, Task, full, padded

START, END = 1, 2
"""Bits of a target: the first token of the answer, its last one; 0 marks a token that merely competes."""


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
        self._check_room(tokenizer, rows, max_length)
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

    def sequences(self, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], max_length: int) -> list[int]:
        """The windows of each row; 1 of one that `encode` refuses."""
        found: list[int] = []
        for question, context in self._lengths(tokenizer, rows, "question", "context"):
            further = self._room(tokenizer, max_length) + 1 - question  # tokens by which a window is ahead of the last
            found.append(max(1, math.ceil((context - self.stride) / further)) if further > 0 else 1)
        return found

    def _check_room(self, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], max_length: int) -> None:
        room = self._room(tokenizer, max_length)
        for row, (length,) in zip(rows, self._lengths(tokenizer, rows, "question"), strict=True):
            if length > room:
                question = row["question"]
                shown = question if len(question) <= 60 else question[:57] + "..."
                raise DataError(
                    f"the question {shown!r} has {length} tokens; with max_length {max_length} and stride "
                    f"{self.stride} there is room for {max(room, 0)}"
                )

    def _room(self, tokenizer: PreTrainedTokenizerBase, max_length: int) -> int:
        """Tokens that a question may have, so that windows go on by one at least."""
        return max_length - tokenizer.num_special_tokens_to_add(pair=True) - self.stride - 1

    def _lengths(
        self, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], *names: str
    ) -> Iterator[tuple[int, ...]]:
        """Of each row the tokens of some texts."""
        each = [
            tokenizer([row[name] for row in rows], add_special_tokens=False, verbose=False)["input_ids"]
            for name in names
        ]
        return zip(*(map(len, cast("list[list[int]]", ids)) for ids in each), strict=True)

    def _features(self, row: Row, sequences: tuple[Inputs, ...], offsets: Sequence[Sequence[Offset]]) -> Windows:
        flat = tuple(offset for window in offsets for offset in window)
        target = self._target(row["answers"], offsets) if "answers" in row else None
        return Windows(sequences, target, context=row["context"], offsets=flat)

    def _target(self, answers: Sequence[Mapping[str, Any]], offsets: Sequence[Sequence[Offset]]) -> list[int]:
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
        z = full(logits)
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
        found = self.candidates(z, features)
        best = found.best
        if best is None:
            return {"answer": "", "start": None, "end": None, "score": 1.0, "no_answer": 1.0}
        p = softmax(np.append(found.scores, found.none), temperature)
        refused = found.margin > self.threshold
        start, end = (None, None) if refused else map(int, found.spans[best])
        return {
            "answer": "" if start is None else features.context[start:end],
            "start": start,
            "end": end,
            "score": float(p[-1 if refused else best]),
            "no_answer": float(p[-1]),
        }

    def candidates(self, z: Logits, features: Windows) -> Candidates:
        """All that may be answered."""
        return candidates(z, features, self.answer_length, self.unanswerable)

    def is_right(self, answer: Answer, row: Row) -> bool:
        """Whether it is one of the references, to the letter once both are made plain."""
        return exact_match(answer["answer"], references(row)) == 1.0

    def fitted(self, logits: Sequence[Logits], features: Sequence[Features], rows: Sequence[Row]) -> Self:
        """With the threshold that is best on these labelled rows, by F1."""
        windows = cast("Sequence[Windows]", features)
        each = [(self.candidates(z, f), f.context, row) for z, f, row in zip(logits, windows, rows, strict=True)]
        found = [
            (c, context[slice(*c.spans[c.best])], references(row)) for c, context, row in each if c.best is not None
        ]
        if not self.unanswerable or not found:
            return self
        threshold = best_threshold(
            [c.margin for c, _, _ in found],
            [word_f1(text, texts) for _, text, texts in found],
            [word_f1("", texts) for _, _, texts in found],
        )
        return replace(self, threshold=threshold)

    def score(self, answers: Sequence[Answer], rows: Sequence[Row]) -> Scores:
        """F1 and exact match with the best of the references; apart for rows with and without, if there are both."""
        return metrics.score(self.kind, [a["answer"] for a in answers], [references(row) for row in rows])

    def to_card(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "kind": self.kind,
            "stride": self.stride,
            "answer_length": self.answer_length,
            "unanswerable": self.unanswerable,
            "threshold": self.threshold,
        }

    @classmethod
    def from_card(cls, card: Mapping[str, Any]) -> Self:
        """The task of a card."""
        found = cls(
            stride=int(card["stride"]),
            answer_length=int(card["answer_length"]),
            unanswerable=bool(card["unanswerable"]),
            threshold=float(card["threshold"]),
        )
        if found.stride < 0 or found.answer_length < 1:
            raise StoreError(
                f"the task card wants a stride of 0 at least and an answer_length of 1, found {found.stride} and "
                f"{found.answer_length}"
            )
        return found


def references(row: Row) -> list[str]:
    """The texts of a row's reference answers; none: there is no answer."""
    return [answer["text"] for answer in row["answers"]]
