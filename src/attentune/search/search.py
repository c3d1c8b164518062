"""The search itself: what Optuna proposes is weighed, trained where it fits, and told back; the best adapter is kept.

`<output>.search` holds the study (a journal of plain JSON lines) and the best adapter so far. It stays: with `resume`
a search goes on, after a kill or for more minutes.
"""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from attentune import store
from attentune.anatomy import stacks_of
from attentune.comparison import pool
from attentune.errors import ConfigError, UnsupportedError
from attentune.evaluation.metrics import LOWER_IS_BETTER, check_name
from attentune.methods import METHODS
from attentune.quantised import device_for
from attentune.search import space
from attentune.search.budget import Budget, parse_latency, parse_size
from attentune.search.cost import Cost, Meter, rows_to_time
from attentune.search.report import files_of
from attentune.search.trial import Job, Outcome, run
from attentune.tasks import Data
from attentune.tasks.sources import Source
from attentune.training.checkpoints import Mark, every_row
from attentune.training.choice import backbone_of, changes_of, choose, learned_task, phrased
from attentune.training.ground import Ground, ground_of
from attentune.training.recipe import Recipe

REFUSALS = 300
"""Proposals in a row that may be over the budget before it is said that nothing fits."""
FAILURES = 10
"""Trials that may fail before one is finished: then others would as well."""


@dataclass(frozen=True)
class Found:
    """What a search found."""

    folder: Path
    metrics: dict[str, Any]
    """Those of the adapter, and `search`: budget, best trial, importance, trials."""
    notes: tuple[str, ...]


def search(
    data: Source | Data | None = None,
    output: str | Path = "adapter",
    backbone: str | None = None,
    *,
    budget: str | int | None = None,
    latency: str | float | None = None,
    minutes: float = 20.0,
    trials: int | None = None,
    methods: Sequence[str] = (),
    workers: int = 0,
    ray_address: str | None = None,
    seed: int = 0,
    task: str | None = None,
    text: Sequence[str] = (),
    label: str | None = None,
    resume: bool = False,
    report: Callable[[str], None] = lambda line: None,
    **fixed: Any,
) -> Found:
    """Choose method and settings for the task of `data`, and write the best adapter that keeps to the budget.

    `budget` is the most bytes of the adapter's file ("64KB"), `latency` the longest forward pass as a factor of the
    bare backbone's ("1.1x"); both are known before a trial is trained. No trial begins after `minutes`, and one that
    runs is then given up, unless it is the first. `fixed` are keys of a recipe that are not searched. The score on the
    validation rows decides; the test rows are scored, and play no part.

    Raises:
        ConfigError: nothing fits into the budget, every trial failed, or a wish cannot be meant.
        AttentuneError: as `train` does.
    """
    target = store.check_writable(output)
    store.tell_replaced(target, report)
    limits = Budget(None if budget is None else parse_size(budget), None if latency is None else parse_latency(latency))
    if not minutes > 0 or (trials is not None and trials < 1):
        raise ConfigError(f"a search has minutes above 0 and at least one trial, found {minutes} and {trials}")
    for name in methods:
        if name not in METHODS:
            raise ConfigError(f"no method {name!r}; the methods are {', '.join(METHODS)}")
    changes = changes_of(task, text, label, fixed)
    rows, chosen = choose(data, methods[0] if methods else None, None, changes)
    backbone, _ = backbone_of(chosen, backbone)
    if limits.latency is not None and rows.kind == "generation":
        raise UnsupportedError("a latency is that of one forward pass, and generation takes many; drop the latency")
    for note in rows.notes:
        report(note)
    ground = ground_of(backbone, rows.kind == "generation", chosen.training)
    work = target.with_name(f"{target.name}.search")
    wishes = [changes, list(methods), str(limits)]
    mark = Mark(work / "search.id", [every_row(rows), ground.origin.fingerprint, *wishes])
    if not (resume and mark.goes_on("a search with other data, weights or wishes")):
        if mark.fits():
            report(f"{work.name} holds trials of this search; it begins anew, and --resume would go on with them")
        mark.begin()
    one = _Search(rows, chosen, target.name, work, ground, limits, changes, seed, report)
    one.among(list(methods) or list(METHODS))
    deadline = time.time() + 60 * minutes
    ask = partial(one.ask, deadline, trials)
    for job, outcome in pool.drain(run, ask, workers, ray_address):
        one.tell(job, outcome)
    return one.finish(target)


class _Search:
    """A study, the meter that weighs its proposals, and the best adapter so far."""

    def __init__(
        self,
        rows: Data,
        recipe: Recipe,
        name: str,
        work: Path,
        ground: Ground,
        budget: Budget,
        fixed: Mapping[str, Any],
        seed: int,
        report: Callable[[str], None],
    ) -> None:
        self.rows, self.name, self.work, self.backbone, self.budget = rows, name, work, ground.name, budget
        self.fixed, self.report = fixed, report
        base = ground.base
        if budget.latency is not None:
            base.to(cast("Any", device_for(recipe.training.quantise)))  # where a trial trains
        made = learned_task(rows, recipe.task, base)
        learned, vocabulary, note = phrased(made, recipe.task, ground.name, base, ground.tokenizer)
        if note:
            report(note)
        self.metric = check_name(rows.kind, recipe.task.metric or learned.checkpoint_metric, rows.labels)
        self.higher = self.metric not in LOWER_IS_BETTER
        self.pools = learned.head == "sequence" and vocabulary is None
        _, _, anatomy = stacks_of(base)[0]
        self.layers = anatomy.layers(base.config)
        self.meter = Meter(base, ground.tokenizer, learned, vocabulary)
        self.timed = None if budget.latency is None else rows_to_time(rows.validation)
        self.methods: list[str] = []
        self.running: dict[int, optuna.Trial] = {}
        self.failures: list[str] = []
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.study = optuna.create_study(
            study_name="search",
            storage=JournalStorage(JournalFileBackend(str(work / "study.jsonl"))),
            direction="maximize" if self.higher else "minimize",
            load_if_exists=True,
        )
        self.study.sampler = optuna.samplers.TPESampler(seed=seed + len(self.study.trials))

    def among(self, methods: Sequence[str]) -> None:
        """Search among those methods that can act on the backbone; begin with their recipes."""
        for name in methods:
            try:
                first = choose(self.rows, name, None, self.fixed)[1]
                self.meter.cost(first)
                self.methods.append(name)
            except UnsupportedError as error:
                self.report(f"{name}: left out, {error}")
        if not self.methods:
            raise ConfigError(f"none of {', '.join(methods)} can act on {self.backbone}")
        for trial in self.study.get_trials(states=(TrialState.RUNNING,)):  # a killed search left them
            self.study.tell(trial.number, state=TrialState.FAIL)
        if not self.study.trials:
            for start in space.starts(self.methods, self.rows.kind, self.rows.pair):
                self.study.enqueue_trial(start)

    def ask(self, deadline: float, trials: int | None) -> Job | None:
        """The next trial that fits into the budget; None: there is no time for more."""
        done = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        began = sum("seconds" in trial.user_attrs for trial in self.study.get_trials(deepcopy=False))
        late = time.time() > deadline and bool(done or self.failures or self.running)
        hopeless = not done and len(self.failures) >= FAILURES
        if late or hopeless or (trials is not None and began + len(self.running) >= trials):
            return None
        for _ in range(REFUSALS):
            trial = self.study.ask()
            job = self._fitting(trial, deadline if done else None)
            if job is not None:
                return job
        if done or self.failures or self.running:
            return None
        sizes = [trial.user_attrs["bytes"] for trial in self.study.trials if "bytes" in trial.user_attrs]
        least = f"the smallest of {len(sizes)} proposals has {min(sizes):,} bytes" if sizes else "none could be built"
        raise ConfigError(f"nothing fits into {_told(self.budget)}; {least}")

    def _fitting(self, trial: optuna.Trial, until: float | None) -> Job | None:
        try:
            recipe = space.suggest(
                trial, self.methods, self.rows.kind, self.rows.pair, self.layers, self.fixed, self.pools
            )
            cost = self.meter.cost(recipe, self.timed, recipe.task.max_length)
        except UnsupportedError:  # these settings do not go together on this backbone
            self.study.tell(trial, state=TrialState.FAIL)
            return None
        trial.set_user_attr("recipe", recipe.to_toml())
        trial.set_user_attr("bytes", cost.size)
        trial.set_user_attr("latency", cost.latency)
        if over := _over(cost, self.budget):
            trial.set_user_attr("why", over)
            self.study.tell(trial, state=TrialState.PRUNED)
            return None
        self.running[trial.number] = trial
        others = tuple(self.study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED)))
        return Job(trial.number, recipe, self.rows, self.backbone, self.name, self.higher, others, until)

    def tell(self, job: Job, outcome: Outcome) -> None:
        """Learn what a trial gave, and keep its adapter if none was better."""
        trial = self.running.pop(job.number)
        for number, score in enumerate(outcome.scores, 1):
            trial.report(score, number)
        trial.set_user_attr("seconds", round(outcome.seconds, 1))
        if outcome.error is not None:
            trial.set_user_attr("error", outcome.error)
            self.study.tell(trial, state=TrialState.FAIL)
            self.failures.append(outcome.error)
            self.report(f"trial {job.number}: {job.recipe.method}, failed: {outcome.error}")
            return
        best = (max if self.higher else min)(outcome.scores)
        if outcome.why is not None:
            trial.set_user_attr("why", outcome.why)
            self.study.tell(trial, state=TrialState.PRUNED)
        else:
            self._save(job.number, outcome.files)
            self.study.tell(trial, best)
            self._keep(self.study.best_trial)
        ending = {None: "", "behind": ", given up: behind the others", "time": ", given up: no time left"}
        size = trial.user_attrs["bytes"]
        self.report(
            f"trial {job.number}: {job.recipe.method}, {size:,} bytes, {self.metric} {best:.4f}{ending[outcome.why]}"
        )

    def _save(self, number: int, files: Mapping[str, bytes]) -> None:
        folder = self.work / "trials" / str(number)
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / name).write_bytes(content)

    def _keep(self, best: FrozenTrial) -> None:
        for folder in (self.work / "trials").iterdir():
            if folder.name != str(best.number):
                shutil.rmtree(folder)

    def finish(self, target: Path) -> Found:
        """Write the adapter of the best trial, with the report."""
        if not self.study.get_trials(states=(TrialState.COMPLETE,)):
            if self.failures:
                count, last = len(self.failures), self.failures[-1]
                raise ConfigError(f"no trial was finished and {count} failed, the last one of this: {last}")
            raise ConfigError("no trial was finished; give the search more minutes or trials")
        made = self.work / "trials" / str(self.study.best_trial.number)
        stored = store.read(made)
        summary, page = files_of(self.study, self.metric, self.budget)
        metrics = {**stored.metrics, "search": {key: value for key, value in summary.items() if key != "trials"}}
        store.copy(made, target, metrics, {store.SEARCH: store.as_json(summary), store.SEARCH_PAGE: page})
        return Found(target, {**metrics, "search": summary}, self.rows.notes)


def _over(cost: Cost, budget: Budget) -> str | None:
    """Why a cost does not fit into the budget."""
    if budget.size is not None and cost.size > budget.size:
        return f"{cost.size:,} bytes"
    if budget.latency is not None and cost.latency is not None and cost.latency > budget.latency:
        return f"{cost.latency:.2f}x"
    return None


def _told(budget: Budget) -> str:
    parts = [f"{budget.size:,} bytes"] * (budget.size is not None)
    return " and ".join([*parts, *[f"{budget.latency}x"] * (budget.latency is not None)]) or "any budget"
