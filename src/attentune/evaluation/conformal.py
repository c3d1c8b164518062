"""Prediction sets and intervals with a promised coverage: split conformal prediction.

Every validation row says how strange its true answer looked (1 - p of the true class; the largest of these for several
classes; the distance to the true number). The quantile of these strangenesses at the promised coverage is one number;
a set holds every answer that looks no stranger. If rows to come are like the validation rows (exchangeable), the set
holds the true answer with at least the promised probability, on average over rows, whatever the model.

The quantile comes from MAPIE, which needs nothing beside numpy, scipy and scikit-learn. It is all that a task card has
to keep, so that prediction is a comparison and needs no library.

Sources: Vovk, Gammerman, Shafer 2005; Angelopoulos and Bates 2021, section 1 (the finite-sample quantile); Sadinle,
Lei, Wasserman 2019 (1 - p, the smallest sets on average); Cauchois, Gupta, Duchi 2021 (sets that hold all true labels).
"""

import math

import numpy as np
from numpy.typing import ArrayLike

COVERAGES = (0.8, 0.9, 0.95, 0.99)
"""The promises that are prepared in a task card."""
SLACK = 1e-9
"""So that a row as strange as the quantile itself counts as no stranger, whatever float arithmetic says."""


def least_rows(coverage: float) -> int:
    """The fewest validation rows on which this coverage can be promised: coverage / (1 - coverage), rounded up."""
    return math.ceil(coverage / (1 - coverage) - SLACK)


def quantile(strangeness: ArrayLike, coverage: float) -> float | None:
    """Of N validation rows the ceil((N + 1) coverage)-th smallest strangeness; None where N rows are too few for it.

    (Angelopoulos and Bates 2021, section 1.)
    """
    from mapie.conformity_scores import LACConformityScore

    scores = np.asarray(strangeness, dtype=float)
    if len(scores) < least_rows(coverage):
        return None
    risk = np.array([1 - coverage])
    return float(LACConformityScore().get_conformity_score_quantiles(scores, risk, cv="prefit")[0])


def quantiles(strangeness: ArrayLike) -> dict[float, float]:
    """Promised coverage -> quantile, for those of COVERAGES that the rows are enough for."""
    found = {coverage: quantile(strangeness, coverage) for coverage in COVERAGES}
    return {coverage: value for coverage, value in found.items() if value is not None}


def is_inside(strangeness: float, at: float) -> bool:
    """Whether an answer of this strangeness belongs to the set of quantile `at`."""
    return strangeness <= at + SLACK
