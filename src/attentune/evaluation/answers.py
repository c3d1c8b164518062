"""Answers as texts against reference answers: exact match and F1 over words, as the SQuAD papers define them.

Rajpurkar et al. 2016 (EM, F1, the best of several references), Rajpurkar et al. 2018 (questions without an answer).
Both sides are lower-cased and lose punctuation, the articles a, an and the, and superfluous spaces.
"""

import string
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

ARTICLES = frozenset({"a", "an", "the"})
PUNCTUATION = str.maketrans("", "", string.punctuation)


def words_of(text: str) -> list[str]:
    """The words that count."""
    return [word for word in text.lower().translate(PUNCTUATION).split() if word not in ARTICLES]


def exact_match(answer: str, references: Sequence[str]) -> float:
    """1 where the answer has the words of one of the references in their order, else 0; no reference: no answer."""
    return float(any(words_of(answer) == words for words in _references(references)))


def word_f1(answer: str, references: Sequence[str]) -> float:
    """F1 over words, counted as often as they occur, with the reference that suits best; no reference: no answer."""
    return max(_f1(words_of(answer), words) for words in _references(references))


def question_answering(answers: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Means over the rows; "" is the answer "there is none", no reference says that this is right.

    Where some rows have no reference, the means of the others apart (`answerable_...`) and the share of the rows
    without one that were recognised (`unanswerable`).
    """
    exact = np.array([exact_match(a, r) for a, r in zip(answers, references, strict=True)])
    f1 = np.array([word_f1(a, r) for a, r in zip(answers, references, strict=True)])
    scores = {"f1": float(f1.mean()), "exact_match": float(exact.mean())}
    has = np.array([any(words_of(text) for text in texts) for texts in references])
    if not has.all():
        scores["unanswerable"] = float(exact[~has].mean())
        if has.any():
            scores |= {"answerable_f1": float(f1[has].mean()), "answerable_exact_match": float(exact[has].mean())}
    return scores


def best_threshold(margins: ArrayLike, given: ArrayLike, refused: ArrayLike) -> float:
    """The threshold with the best sum of scores where rows with a margin above it are refused.

    margins [B]: how much likelier "no answer" is than the best answer, in log odds; given [B] and refused [B]: the
    score of the row if the answer is given, or refused. It lies in the middle of the gap between two rows, the lowest
    of those that are equally good.
    """
    order = np.argsort(margins, kind="stable")
    m = np.asarray(margins, dtype=float)[order]
    gain = (np.asarray(given, dtype=float) - np.asarray(refused, dtype=float))[order]
    totals = np.concatenate([[0.0], np.cumsum(gain)])  # of answering the k rows with the smallest margins
    places = [m[0] - 1.0, *((m[:-1] + m[1:]) / 2), m[-1] + 1.0]
    possible = [k for k in range(len(places)) if k in (0, len(m)) or m[k - 1] < m[k]]
    return float(places[max(possible, key=lambda k: totals[k])])


def _references(texts: Sequence[str]) -> list[list[str]]:
    found = [words for words in map(words_of, texts) if words]
    return found or [[]]


def _f1(answer: Sequence[str], reference: Sequence[str]) -> float:
    if not answer or not reference:
        return float(answer == reference)
    shared = sum((Counter(answer) & Counter(reference)).values())
    return 2 * shared / (len(answer) + len(reference))
