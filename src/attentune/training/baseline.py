"""What no transformer is needed for, shown beside the adapter's score.

Bag of words for texts and for choices, word shapes for tags, shared words for answers in a context, the nearest
training row for texts to be written.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import sparse
from sklearn.feature_extraction import DictVectorizer
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import Ridge
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neighbors import NearestNeighbors
from sklearn.svm import LinearSVC

from attentune.evaluation.answers import words_of
from attentune.evaluation.metrics import Scores, score
from attentune.tasks.sources import Row

FEATURES = 100_000
"""Words and pairs of words that the text baseline knows, at most."""
WORDS_FOR_TAGS = 20_000
"""Training words that the tagging baseline reads, at most: it is a yardstick and has to be quick."""
SENTENCE = re.compile(r"\S.*?(?:[.!?](?=\s)|$)", re.DOTALL)


def baseline(kind: str, train: Sequence[Row], rows: Sequence[Row], labels: Sequence[str]) -> Scores:
    """All scores on `rows` of a linear model on words (TF-IDF of one and two words), learned from `train`.

    Of answers in a context: of the words that only the sentence has which shares most with the question. Of texts to
    be written: of the text that the nearest training row (cosine of the same TF-IDF) has.
    """
    if kind == "tagging":
        return score(kind, _tags(train, rows), [row["tags"] for row in rows], labels)
    if kind == "question_answering":
        texts = [[answer["text"] for answer in row["answers"]] for row in rows]
        return score(kind, _answers(rows), texts)
    if kind == "multiple_choice":
        return score(kind, _choices(train, rows), [row["label"] for row in rows])
    x, y = _vectors(train, rows)
    targets = [row["label"] for row in train]
    references = [row["label"] for row in rows]
    if kind == "generation":
        nearest = NearestNeighbors(n_neighbors=1, metric="cosine").fit(x).kneighbors(y, return_distance=False)
        return score(kind, [targets[i][0] for i in nearest[:, 0]], references)
    if kind == "regression":
        return score(kind, list(Ridge(alpha=1.0).fit(x, targets).predict(y)), references)
    model = LinearSVC(C=0.5, random_state=0)
    if kind == "classification" and len(set(targets)) == 1:
        return score(kind, targets[:1] * len(rows), references, labels)
    if kind == "classification":
        return score(kind, list(model.fit(x, targets).predict(y)), references, labels)
    seen = [name for name in labels if any(name in t for t in targets) and not all(name in t for t in targets)]
    learned = OneVsRestClassifier(model).fit(x, _indicators(targets, seen)) if seen else None
    found = np.asarray(learned.predict(y)).reshape(len(rows), -1) if learned else np.zeros((len(rows), 0))
    always = [name for name in labels if all(name in t for t in targets)]
    guesses = [[*always, *(name for name, on in zip(seen, row, strict=True) if on)] for row in found]
    return score(kind, list(_indicators(guesses, labels)), list(_indicators(references, labels)))


def _indicators(rows: Sequence[Sequence[str]], labels: Sequence[str]) -> Any:
    return np.array([[int(name in row) for name in labels] for row in rows])


def _vectors(train: Sequence[Row], rows: Sequence[Row]) -> tuple[Any, Any]:
    """TF-IDF of the text; of a pair: of each side, and of the words that both sides share."""
    views = [lambda row: row["text"]]
    if "text_pair" in train[0]:
        views += [lambda row: row["text_pair"], _shared_words]
    columns = [_fit_view([view(row) for row in train], [view(row) for row in rows]) for view in views]
    return sparse.hstack([x for x, _ in columns]).tocsr(), sparse.hstack([y for _, y in columns]).tocsr()


def _fit_view(train: list[str], rows: list[str]) -> tuple[Any, Any]:
    vectorizer = TfidfVectorizer(
        ngram_range=(1, 2), max_features=FEATURES, sublinear_tf=True, token_pattern=r"\w+|[^\w\s]"
    )
    try:
        return vectorizer.fit_transform(train), vectorizer.transform(rows)
    except ValueError:  # no word at all in this view of the training rows
        return sparse.csr_matrix((len(train), 1)), sparse.csr_matrix((len(rows), 1))


def _shared_words(row: Row) -> str:
    first, second = (set(row[key].lower().split()) for key in ("text", "text_pair"))
    shared = len(first & second) / max(len(first | second), 1)
    return " ".join([f"overlap{round(shared * 10)}", *(f"only{w}" for w in sorted(first ^ second))])


def _answers(rows: Sequence[Row]) -> list[str]:
    """The longest run of words outside of the question, in the sentence that shares its rarest words; never none."""
    seen = Counter(word for context in {row["context"] for row in rows} for word in set(words_of(context)))
    found: list[str] = []
    for row in rows:
        question = set(words_of(row["question"]))
        sentences: list[str] = SENTENCE.findall(row["context"])
        best = max(sentences, key=lambda text: sum(1 / (1 + seen[w]) for w in question & set(words_of(text))))
        runs: list[list[str]] = [[]]
        for word in best.split():
            if question & set(words_of(word)):
                runs.append([])
            else:
                runs[-1].append(word)
        found.append(" ".join(max(runs, key=len)))
    return found


def _choices(train: Sequence[Row], rows: Sequence[Row]) -> list[int]:
    """The choice that a linear model of right and wrong choices likes best."""
    x, y = _vectors(_pairs(train), _pairs(rows))
    right = [i == row["label"] for row in train for i in range(len(row["choices"]))]
    liked = iter(LinearSVC(C=0.5, random_state=0).fit(x, right).decision_function(y))
    return [int(np.argmax([next(liked) for _ in row["choices"]])) for row in rows]


def _pairs(rows: Sequence[Row]) -> list[Row]:
    told = [" ".join([row["text"], *([row["text_pair"]] if "text_pair" in row else [])]) for row in rows]
    return [{"text": text, "text_pair": c} for text, row in zip(told, rows, strict=True) for c in row["choices"]]


def _tags(train: Sequence[Row], rows: Sequence[Row]) -> list[list[str]]:
    """A tag for each word alone, from the word, its shape, its ends and its neighbours."""
    features: list[dict[str, Any]] = []
    targets: list[str] = []
    for row in train:
        if len(targets) >= WORDS_FOR_TAGS:
            break
        features += _word_features(row["tokens"])
        targets += row["tags"]
    if len(set(targets)) < 2:
        return [[targets[0]] * len(row["tokens"]) for row in rows]
    vectorizer = DictVectorizer()
    model = LinearSVC(C=0.5, random_state=0).fit(_narrow(vectorizer.fit_transform(features)), targets)
    found = [f for row in rows for f in _word_features(row["tokens"])]
    flat = iter(model.predict(_narrow(vectorizer.transform(found))))
    return [[str(next(flat)) for _ in row["tokens"]] for row in rows]


def _narrow(x: Any) -> Any:
    """The same matrix with the 32-bit indices that liblinear wants."""
    return sparse.csr_matrix((x.data, x.indices.astype(np.int32), x.indptr.astype(np.int32)), x.shape)


def _word_features(tokens: Sequence[str]) -> list[dict[str, Any]]:
    padded = ["<s>", *tokens, "</s>"]
    return [
        {
            "word": word.lower(),
            "shape": _shape(word),
            "start": word[:3].lower(),
            "end": word[-3:].lower(),
            "before": padded[i].lower(),
            "before shape": _shape(padded[i]),
            "after": padded[i + 2].lower(),
            "after shape": _shape(padded[i + 2]),
        }
        for i, word in enumerate(tokens)
    ]


def _shape(word: str) -> str:
    """'McBain-7' -> 'XxXx-d': kinds of signs, repeats once."""
    kinds = ["X" if c.isupper() else "x" if c.islower() else "d" if c.isdigit() else c for c in word]
    return "".join(kind for i, kind in enumerate(kinds) if i == 0 or kinds[i - 1] != kind)
