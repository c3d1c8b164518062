"""How much a score depends on the draw: its mean over seeds and an interval around it."""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from attentune.evaluation.metrics import Scores


def over_seeds(values: Sequence[float], level: float = 0.95) -> dict[str, float]:
    """Scores of n seeds -> `mean` and Student's interval mean ± t s / sqrt(n), `low` and `high`.

    The interval is about other seeds (draws of rows, start values) on the same test rows. One seed has none: then only
    the mean is given.
    """
    mean = float(np.mean(values))
    if len(values) < 2:
        return {"mean": mean}
    half = float(stats.t.ppf((1 + level) / 2, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
    return {"mean": mean, "low": mean - half, "high": mean + half}


def summary(runs: Sequence[Mapping[str, Scores]]) -> dict[str, dict[str, dict[str, float]]]:
    """Scores of each seed by split -> split, score name, its mean and interval; what every seed has."""
    splits = [name for name in runs[0] if all(name in run for run in runs)]
    return {
        split: {
            name: over_seeds([run[split][name] for run in runs])
            for name in runs[0][split]
            if all(name in run[split] for run in runs)
        }
        for split in splits
    }
