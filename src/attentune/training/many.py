"""Many tasks at once: each trained as `train` trains it, with the steps of several taken together.

A task has its own rows and their order, optimiser, schedule, clipping, best epoch, early stopping, checkpoints and
folder; only the forward and the backward are one for all tasks in flight (`meeting`). So each comes out as if it had
been trained alone. With `share_attention` the tasks learn one attention over prompts instead (`shared`).
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from traceback import format_tb
from typing import Any

from torch import Tensor

from attentune import store
from attentune.errors import AttentuneError, ConfigError, UnsupportedError
from attentune.tasks import Data
from attentune.tasks.sources import Source
from attentune.training.checkpoints import Finished
from attentune.training.choice import backbone_of, choose, drawn
from attentune.training.ground import Ground, ground_of
from attentune.training.lanes import Lane
from attentune.training.loop import JointStep, Share
from attentune.training.meeting import Meeting
from attentune.training.recipe import Recipe
from attentune.training.shared import train_shared
from attentune.training.train import Report, Result, identity_of, learn

TOGETHER = 8
"""Tasks in flight at once, unless told otherwise."""


class Results(dict[str, Result]):
    """What training made, by task; `failed`: of the others, what went wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.failed: dict[str, Exception] = {}

    def ordered(self, names: Iterable[str]) -> "Results":
        """The same, in this order."""
        found = Results()
        found.update((name, self[name]) for name in names if name in self)
        found.failed = self.failed
        return found


def train_many(
    data: Mapping[str, Source | Data],
    output: str | Path = "adapters",
    backbone: str | None = None,
    recipe: str | Path | Recipe | None = None,
    *,
    method: str | None = None,
    library: str | Path | None = None,
    together: int | None = None,
    share_attention: bool = False,
    resume: bool = False,
    report: Report = lambda line: None,
    **overrides: Any,
) -> Results:
    """Train adapters for many tasks, `{name: data}`, and write `output/name` for each, as `train` would.

    Each step is taken by up to `together` tasks (8) at once; the next task begins when one is done. The recipe is the
    one given, else for each task that of the package for its kind and the method. A task that fails is in `failed` of
    the results, and the others go on; a step that fails, for want of memory say, fails all tasks that take it together.
    `resume` leaves out what is finished, and goes on with the rest from their last checkpoints.

    With `share_attention` all are learned at once under one attention over prompts (ATTEMPT), with one recipe and one
    best epoch.

    Raises:
        ConfigError: no task, a name that no folder can have, or `together` below 1.
        UnsupportedError: it runs in several processes; or, with `share_attention`, the method shares nothing, or some
            tasks write texts and others do not.
        AttentuneError: else as `train` does, where no task could be trained.
    """
    if not data:
        raise ConfigError("no task given; wanted {name: data}")
    if share_attention:
        if together is not None:
            raise ConfigError("with one attention all tasks are learned at once; drop `together`")
        given: dict[str, Any] = {"method": method, "library": library, "resume": resume, "report": report}
        results = Results()
        results.update(train_shared(data, output, backbone, recipe, **given, **overrides))
        return results
    if together is not None and together < 1:
        raise ConfigError(f"at least one task is trained at a time, found together={together}")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UnsupportedError("tasks that take their steps together do so in one process; give each process its own")
    home = Path(output).expanduser().absolute()
    targets = {name: store.place_of(home, name) for name in data}
    finished = Finished(home, resume)

    def choose_one(name: str) -> tuple[Data, Recipe]:
        rows, chosen = choose(data[name], method, recipe, overrides, library)
        return drawn(rows, chosen.task.shots, chosen.training.seed), chosen

    crew = _Crew(choose_one, targets, backbone, library, finished, resume, report)
    results = crew.run(together or TOGETHER)
    if not results:
        raise next(iter(results.failed.values()))
    if not results.failed:
        finished.remove()
    return results.ordered(data)


@dataclass
class _Crew:
    """Tasks in flight: each in a lane of its own, which stands still at every step until all have come there."""

    choose: Callable[[str], tuple[Data, Recipe]]
    targets: Mapping[str, Path]
    backbone: str | None
    library: str | Path | None
    finished: Finished
    resume: bool
    report: Report
    results: Results = field(default_factory=Results)
    meeting: Meeting | None = None
    _grounds: dict[bool, Ground] = field(default_factory=dict[bool, Ground])
    _lanes: dict[str, Lane[Share, Tensor]] = field(default_factory=dict[str, Lane[Share, Tensor]])
    _shares: dict[str, Share] = field(default_factory=dict[str, Share])

    def run(self, together: int) -> Results:
        """Train all, so many at a time."""
        waiting = deque(self.targets)
        try:
            while waiting or self._lanes:
                while waiting and len(self._lanes) < together:
                    name = waiting.popleft()
                    lane = self._lanes[name] = Lane(partial(self._train, name))
                    self._go_on(name, lane.start)
                self._step()
        finally:
            for lane in self._lanes.values():
                lane.stop()
        return self.results

    def _step(self) -> None:
        shares = dict(self._shares)
        if self.meeting is None or not shares:
            return
        try:
            losses = self.meeting.step(list(shares.values()))
        except Exception as error:
            # Where it was is kept as text: frames hold what the step has computed, and memory may be what was wanting.
            error.add_note("".join(format_tb(error.__traceback__)))
            for name in shares:
                self._go_on(name, partial(self._lanes[name].fail, error.with_traceback(None)))
            return
        for name, loss in zip(shares, losses, strict=True):
            self._go_on(name, partial(self._lanes[name].answer, loss))

    def _go_on(self, name: str, until: Callable[[], Share | None]) -> None:
        """Let one task run to its next step, or to its end; its lane stays for `run` to stop where all are to end."""
        share: Share | None = None
        try:
            share = until()
        except Exception as error:
            self.results.failed[name] = error
            kind = "" if isinstance(error, AttentuneError) else f"{type(error).__name__}: "
            self.report(f"{name}: not trained: {kind}{error}")
        last = self._shares.pop(name, None)
        if share is not None:
            self._shares[name] = share
        else:
            del self._lanes[name]
            if last is not None and self.meeting is not None:
                self.meeting.leave(last.trainer)

    def _train(self, name: str, step: JointStep) -> None:
        """One task from its data to its folder; texts are written, and so learned, by each such task alone."""
        rows, chosen = self.choose(name)
        _check_trackers(chosen.training.report_to)
        writes = rows.kind == "generation"
        ground, chosen = self._stand(chosen, writes)
        identity = identity_of(rows, chosen, ground)
        if self.finished.has(name, identity) and (self.targets[name] / store.CARD).is_file():
            done = store.read(self.targets[name])
            self.results[name] = Result(done.folder, done.card, done.metrics, rows.notes)
            return

        def tell(line: str) -> None:
            self.report(f"{name}: {line}")

        store.tell_replaced(self.targets[name], self.report)
        for note in rows.notes:
            tell(note)
        self.results[name] = learn(
            rows,
            chosen,
            self.targets[name],
            ground.twin(),
            library=self.library,
            resume=self.resume,
            report=tell,
            step=None if writes else step,
        )
        self.finished.add(name, identity)

    def _stand(self, chosen: Recipe, writes: bool) -> tuple[Ground, Recipe]:
        """The backbone of all tasks, loaded once (and once more with its language head for those that write)."""
        name, chosen = backbone_of(chosen, self.backbone)
        self.backbone = name
        if writes not in self._grounds:
            self._grounds[writes] = ground_of(name, writes, chosen.training)
        if self.meeting is None and not writes:
            self.meeting = Meeting(self._grounds[writes])
        return self._grounds[writes], chosen


def _check_trackers(names: Sequence[str]) -> None:
    others = [name for name in names if name != "tensorboard"]
    if others:
        raise ConfigError(f"{others[0]} follows one run of a process, and here are several; tensorboard follows them")
