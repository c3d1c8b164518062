"""One trial: a recipe is trained, and given up when it falls behind the others. Runs in any process of any machine.

A worker gets plain values: the recipe, the rows and what the finished trials scored. It sends back the files of the
adapter, which are kilobytes, so that the machines need no disk in common.
"""

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState
from transformers.utils import logging

from attentune.errors import AttentuneError
from attentune.tasks import Data
from attentune.training.recipe import Recipe
from attentune.training.train import train


@dataclass(frozen=True)
class Job:
    """What a worker needs."""

    number: int
    recipe: Recipe
    data: Data
    backbone: str
    name: str
    """The adapter's."""
    higher: bool
    """Whether a higher score is better."""
    others: tuple[FrozenTrial, ...]
    """Finished trials, by whose scores this one is judged."""
    until: float | None
    """time.time() after which it is given up; None: it may take as long as it wants."""


@dataclass(frozen=True)
class Outcome:
    """What a trial gave."""

    scores: tuple[float, ...]
    """On validation, an evaluation each."""
    why: str | None
    """Why it was given up: `behind` or `time`; None: it is finished, or it failed."""
    seconds: float
    files: dict[str, bytes]
    """The adapter folder of a finished trial."""
    error: str | None = None
    """What it failed of, in a line."""


class GivenUpError(Exception):
    """Raised inside training: the trial is not worth more time."""


def run(job: Job) -> Outcome:
    """Train; after each evaluation ask the pruner and the clock whether to go on. A failure is an outcome too."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    begin = time.perf_counter()
    scores: list[float] = []
    study = study_of(job)
    trial = study.ask()

    def watch(number: int, score: float) -> None:
        scores.append(score)
        trial.report(score, number)
        if number >= job.recipe.training.epochs and not job.recipe.training.eval_steps:
            return  # it is through: giving up would spare nothing
        if job.until is not None and time.time() > job.until:
            raise GivenUpError("time")
        if trial.should_prune():
            raise GivenUpError("behind")

    with tempfile.TemporaryDirectory(prefix="attentune-search-") as work:
        folder = Path(work) / job.name
        try:
            train(job.data, None, folder, job.backbone, job.recipe, watch=watch)
        except GivenUpError as reason:
            return Outcome(tuple(scores), str(reason), time.perf_counter() - begin, {})
        except Exception as error:  # a library's error, of these settings perhaps: the search has others
            kind = "" if isinstance(error, AttentuneError) else f"{type(error).__name__}: "
            return Outcome(tuple(scores), None, time.perf_counter() - begin, {}, kind + " ".join(str(error).split()))
        files = {file.name: file.read_bytes() for file in sorted(folder.iterdir())}
    return Outcome(tuple(scores), None, time.perf_counter() - begin, files)


def study_of(job: Job) -> optuna.Study:
    """A study in memory that knows what the finished trials scored.

    Below the median of the others at the same evaluation a trial is given up, after its second evaluation and as soon
    as there are four to compare with.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        direction="maximize" if job.higher else "minimize",
        pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=2),
    )
    study.add_trials([trial for trial in job.others if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)])
    return study
