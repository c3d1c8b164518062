"""The same training over several seeds: a mean with an interval instead of one lucky number.

A seed decides the start values, the order of the rows and, with `shots`, which rows there are. The adapter that is kept
is the one with the best validation score; `metrics.json` has the scores of all.
"""

import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from attentune import store
from attentune.errors import ConfigError
from attentune.evaluation.metrics import LOWER_IS_BETTER
from attentune.evaluation.seeds import summary
from attentune.tasks import Data
from attentune.tasks.sources import Source
from attentune.training.checkpoints import Mark
from attentune.training.choice import backbone_of, changes_of, choose, drawn
from attentune.training.ground import Ground, ground_of
from attentune.training.recipe import Recipe
from attentune.training.train import Result, identity_of, learn


@dataclass(frozen=True)
class SeedRun:
    """What one seed gave."""

    seed: int
    result: Result

    @property
    def scores(self) -> dict[str, Any]:
        """By split."""
        return {name: self.result.metrics[name] for name in ("validation", "test") if name in self.result.metrics}


def train_seeds(
    data: Source | Data | None = None,
    method: str | None = None,
    output: str | Path = "adapter",
    backbone: str | None = None,
    recipe: str | Path | Recipe | None = None,
    *,
    seeds: int = 5,
    library: str | Path | None = None,
    task: str | None = None,
    text: Sequence[str] = (),
    label: str | None = None,
    resume: bool = False,
    report: Callable[[str], None] = lambda line: None,
    **overrides: Any,
) -> Result:
    """Train with `seeds` seeds, from the recipe's seed on, and write the adapter of the best one.

    Its metrics have `seeds`: `runs` (the scores of each seed), `kept` (the seed of the adapter) and `mean` (of each
    score of a split: mean, low, high; Student's 95% interval). Else as `train`; `resume` also leaves out what is
    finished.

    Raises:
        AttentuneError: as `train` does.
    """
    if seeds < 1:
        raise ConfigError(f"at least one seed is needed, found seeds={seeds}")
    target = store.check_writable(output)
    store.tell_replaced(target, report)
    rows, chosen = choose(data, method, recipe, changes_of(task, text, label, overrides), library)
    backbone, chosen = backbone_of(chosen, backbone)
    ground = ground_of(backbone, rows.kind == "generation", chosen.training)
    work = target.with_name(f"{target.name}.seeds")
    mark = Mark(work / "run.id", identity_of(rows, chosen, ground))
    if not (resume and mark.goes_on("seeds with other settings, data or weights")):
        mark.begin()
    runs: list[SeedRun] = []
    for seed in range(chosen.training.seed, chosen.training.seed + seeds):
        report(f"seed {seed}")
        one = chosen.override({"training.seed": seed})
        runs.append(SeedRun(seed, _run(rows, one, work / str(seed) / target.name, ground, library, resume, report)))
    best = max(runs, key=lambda run: _rank(run, chosen))
    metrics = {
        **best.result.metrics,
        "seeds": {
            "runs": {str(run.seed): run.scores for run in runs},
            "kept": best.seed,
            "mean": summary([run.scores for run in runs]),
        },
    }
    store.copy(best.result.folder, target, metrics)
    for run in runs:
        _keep_events(work / str(run.seed) / f"{target.name}.tensorboard", target, run.seed)
    mark.end()
    return replace(best.result, folder=target, metrics=metrics)


def _run(
    rows: Data,
    recipe: Recipe,
    folder: Path,
    ground: Ground,
    library: str | Path | None,
    resume: bool,
    report: Callable[[str], None],
) -> Result:
    if resume and (folder / store.CARD).is_file():
        done = store.read(folder)
        return Result(folder, done.card, done.metrics, rows.notes)
    folder.parent.mkdir(parents=True, exist_ok=True)
    few = drawn(rows, recipe.task.shots, recipe.training.seed)
    for note in few.notes:
        report(note)
    return learn(few, recipe, folder, ground.twin(), library=library, resume=resume, report=report)


def _rank(run: SeedRun, recipe: Recipe) -> float:
    metric = recipe.task.metric or run.result.card.task.main_metric
    scores: Mapping[str, float] = run.result.metrics["validation"]
    value = scores[metric] if metric in scores else _lowest(run.result.folder, metric)
    return -value if metric in LOWER_IS_BETTER else value


def _lowest(folder: Path, metric: str) -> float:
    """What was reached of a loss, which is no score of the adapter's answers: only training measures it."""
    lines = (folder / store.LOG).read_text(encoding="utf-8").splitlines()
    found = [json.loads(line)["validation"][metric] for line in lines]
    # One that was not finite stands there as null.
    return min((value for value in found if value is not None), default=math.inf)


def _keep_events(events: Path, target: Path, seed: int) -> None:
    kept = target.with_name(f"{target.name}.tensorboard") / f"seed-{seed}"
    for run in events.glob("*"):
        kept.mkdir(parents=True, exist_ok=True)
        shutil.move(run, kept)
