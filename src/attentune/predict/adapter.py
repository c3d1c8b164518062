"""One task on its backbone."""

from collections.abc import Sequence

from attentune.confidence import Judgement, Labelled, check_wishes, judge
from attentune.evaluation.generation import check_installed
from attentune.evaluation.metrics import Scores
from attentune.predict.predictor import Job, Predictor
from attentune.store import Stored
from attentune.tasks import Answer
from attentune.tasks.data import load_rows, parted
from attentune.tasks.inputs import Input
from attentune.tasks.rows import check_known
from attentune.tasks.sources import Source


class Adapter:
    """One task on its backbone."""

    def __init__(self, predictor: Predictor, name: str, stored: Stored) -> None:
        self.predictor = predictor
        self.name = name
        self.card = stored.card
        self.metrics = stored.metrics

    def predict(
        self,
        inputs: Sequence[Input],
        batch_size: int = 32,
        *,
        abstain_at: float | None = None,
        coverage: float | None = None,
    ) -> list[Answer]:
        """Texts, pairs, lists of words, questions with their context or choices -> one answer each, in their order.

        An answer is a plain dict: `label`, `score`, `probabilities` (classification), `labels`, `score`,
        `probabilities` (multilabel), `value` (regression), `spans`, `words`, `tags`, `score` (tagging), `answer`,
        `start`, `end`, `score`, `no_answer` (question answering), `choice`, `index`, `score`, `probabilities` (multiple
        choice), `text` (generation). `score` is the calibrated probability that the whole answer is right; `truncated`
        says that the end was cut. With `abstain_at=p` answers have `abstained`, whether their score is below p. With
        `coverage=0.9` they have a `prediction_set` (a number: an `interval`) that holds the true answer with at least
        that probability. Where the task card has an out-of-scope threshold they have `out_of_scope` and
        `out_of_scope_score`.
        """
        names = [self.name] * len(inputs)
        return self.predictor.predict(inputs, names, batch_size, abstain_at=abstain_at, coverage=coverage)

    def evaluate(
        self, data: Source, split: str | None = None, batch_size: int = 32, *, abstain_at: float | None = None
    ) -> Scores:
        """Scores on labelled rows and what `judge` tells of trust, all by name."""
        found = self.judge(data, split, batch_size, abstain_at=abstain_at)
        return {**found.scores, **found.trust}

    def judge(
        self, data: Source, split: str | None = None, batch_size: int = 32, *, abstain_at: float | None = None
    ) -> Judgement:
        """Judge on labelled rows: a file, a folder, a hub id, rows (of `split`, else of the test split if any).

        Rows of the out-of-scope class, where the card names one, are judged by whether they are detected.
        """
        card = self.card
        check_wishes(card.task, card.calibration, abstain_at, None)
        if card.task.head == "language":
            check_installed()
        strange = card.calibration.scope.label if card.calibration.scope else None
        given = load_rows(data, card.columns, card.task.kind, split)
        check_known(given, card.task.kind, card.task.labels, split or "the data's", strange)
        rows, outside = parted(given, strange)
        features = card.task.encode(self.predictor.tokenizer, [*rows, *outside], card.max_length)
        logits = self.predictor.logits([Job(f, self.name) for f in features], batch_size)
        count = len(rows)
        known = Labelled(logits[:count], features[:count], rows, logits[count:])
        return judge(card.task, card.calibration, known, abstain_at)

    def attention(self, inputs: Sequence[Input], batch_size: int = 32) -> list[dict[str, float]]:
        """The weight of every prompt that the adapter mixes for each input, by name; they sum to 1."""
        return self.predictor.attention(inputs, [self.name] * len(inputs), batch_size)
