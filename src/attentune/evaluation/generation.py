"""Written texts against references: BLEU and chrF by sacrebleu, ROUGE by rouge-score (extra `generation`).

Every score lies between 0 and 100, as papers print them. A row with several references counts by what fits best: BLEU
and chrF as sacrebleu defines it, ROUGE the reference of the largest F1. ROUGE reads the letters a to z and digits only.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from attentune.errors import ConfigError

ROUGES = ("rouge1", "rouge2", "rougeL")


def check_installed() -> None:
    """ConfigError unless the extra `generation` is installed."""
    try:
        import rouge_score.rouge_scorer  # noqa: F401  # pyright: ignore[reportUnusedImport]
        import sacrebleu  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError as error:
        raise ConfigError(
            "generated texts are scored by sacrebleu and rouge-score: pip install 'attentune[generation]'"
        ) from error


def generation(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Texts and, for each, one or more references -> `bleu` and `chrf` of the corpus; mean F1 for each ROUGE.

    Raises:
        ConfigError: as `check_installed`.
    """
    check_installed()
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu import BLEU, CHRF

    widest = max(map(len, references))
    streams: Any = [[refs[i] if i < len(refs) else None for refs in references] for i in range(widest)]
    scorer = RougeScorer(list(ROUGES))
    each = [scorer.score_multi(list(refs), text) for text, refs in zip(predictions, references, strict=True)]
    return {
        "bleu": float(BLEU(force=True).corpus_score(predictions, streams).score),
        "chrf": float(CHRF().corpus_score(predictions, streams).score),
        **{name: 100 * float(np.mean([found[name].fmeasure for found in each])) for name in ROUGES},
    }
