"""What a killed run leaves behind, and which run that was."""

import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from transformers import SchedulerType, Trainer
from transformers.trainer_utils import TrainOutput

from attentune.errors import ConfigError
from attentune.tasks import Data

STATE = "trainer_state.json"
MARK = re.compile("[0-9a-f]{64}")


def every_row(data: Data) -> list[Any]:
    """Of all splits: a result depends on the rows that judge it, too."""
    return [data.train, data.validation, data.test, data.outside]


def check_ours(folder: Path) -> None:
    """Before a run works in a folder, and removes what an earlier one left there: nothing else is in it.

    Raises:
        ConfigError: it holds files, and no mark among them.
    """
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    strange = next((path.name for path in found if not path.name.endswith(".id.new")), None)
    if strange is not None and not any(map(_is_mark, found)):
        raise ConfigError(
            f"the run would work in {folder}, and remove what is there: it holds {strange}, which no run left; "
            "move it, or name another output"
        )


def _is_mark(path: Path) -> bool:
    if path.suffix != ".id":
        return False
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return not text or MARK.fullmatch(text) is not None


class Mark:
    """A hash in a file, by which a run knows that what lies beside it is its own; written whole or not at all."""

    def __init__(self, path: Path, identity: Any) -> None:
        self.path = path
        self.identity = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()

    def fits(self) -> bool | None:
        """Whether what is there is of this run; None: there is no mark that can be read."""
        try:
            found = self.path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None
        return found == self.identity if MARK.fullmatch(found) else None

    def goes_on(self, other: str) -> bool:
        """Whether there is something of this run to go on with.

        Raises:
            ConfigError: the folder holds something else, `other` in words.
        """
        fits = self.fits()
        if fits is False:
            raise ConfigError(f"{self.path.parent} holds {other}; start again without resume")
        return bool(fits)

    def begin(self) -> None:
        """Mark the folder, and empty it before.

        Raises:
            ConfigError: it holds what no run left.
        """
        check_ours(self.path.parent)
        self.end()
        self.write()

    def write(self) -> None:
        """Mark what is there."""
        self._put(self.identity)

    def end(self) -> None:
        """Remove the folder."""
        if not self.path.parent.is_dir():
            return
        # The mark goes last, and is empty before: what a kill leaves is known as ours, and no run goes on with it.
        self._put("")
        for path in self.path.parent.iterdir():
            if path != self.path:
                _remove(path)
        self.path.unlink(missing_ok=True)
        shutil.rmtree(self.path.parent, ignore_errors=True)

    def _put(self, text: str) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.path.with_name(f"{self.path.name}.new")
        fresh.write_text(text, encoding="utf-8")
        os.replace(fresh, self.path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


class Checkpoints:
    """`<output>.training`: what a killed run leaves behind, and which run that was.

    Raises:
        ConfigError: there is a folder of that name which no run left.
    """

    def __init__(self, output: Path, identity: Any) -> None:
        self.folder = output.with_name(f"{output.name}.training")
        check_ours(self.folder)
        self.mark = Mark(self.folder / "run.id", identity)

    def train(self, trainer: Trainer, resume: bool) -> TrainOutput:
        """Let the Trainer train, from a checkpoint where there is one to go on from.

        Raises:
            ConfigError: the checkpoints belong to another recipe, backbone or task, or the best one is not there.
        """
        checkpoint = self._start(trainer.is_world_process_zero(), resume)
        if checkpoint is not None and _is_over(checkpoint):
            # The Trainer forgets that, and would take a step before it is told again. Not every schedule has 0 steps.
            trainer.args.num_train_epochs, trainer.args.lr_scheduler_type = 0, SchedulerType.CONSTANT
        return trainer.train(resume_from_checkpoint=checkpoint)

    def _start(self, writes: bool, resume: bool) -> str | None:
        """The checkpoint to go on from, or None for a fresh start, which the process that `writes` makes room for."""
        if resume and self.mark.goes_on("a run with other settings or data"):
            last = self._last_whole()
            if last is not None:
                self._bring_best(last)
            return last
        if writes:
            self.mark.begin()
        return None

    def _last_whole(self) -> str | None:
        """A kill while saving leaves a checkpoint without its state, which the Trainer writes last."""
        found: dict[int, Path] = {}
        for folder in self.folder.glob("checkpoint-*"):
            try:
                found[_state(folder)["global_step"]] = folder
            except (OSError, json.JSONDecodeError):
                continue
        return str(found[max(found)]) if found else None

    def _bring_best(self, last: str) -> None:
        """A checkpoint names the best one by its whole path; where the folder has moved, let it name the one here."""
        state = _state(last)
        if state["best_model_checkpoint"] is None:
            return
        best = self.folder / Path(state["best_model_checkpoint"]).name
        if not best.is_dir():
            raise ConfigError(f"{self.folder} has no {best.name}, its best checkpoint; start again without resume")
        if state["best_model_checkpoint"] != str(best):
            state["best_model_checkpoint"] = str(best)
            # Several processes may write the same.
            fresh = Path(last, f"{STATE}.{os.getpid()}")
            fresh.write_text(json.dumps(state), encoding="utf-8")
            os.replace(fresh, Path(last, STATE))

    def remove(self) -> None:
        """The run is over."""
        self.mark.end()


def _state(checkpoint: str | Path) -> Any:
    return json.loads(Path(checkpoint, STATE).read_text(encoding="utf-8"))


def _is_over(checkpoint: str) -> bool:
    """Whether training ended with this checkpoint."""
    return _state(checkpoint)["stateful_callbacks"]["TrainerControl"]["args"]["should_training_stop"]


class Finished:
    """`<output>.training`: which of many tasks a killed run had finished, and as what.

    Raises:
        ConfigError: there is a folder of that name which no run left.
    """

    def __init__(self, output: Path, resume: bool) -> None:
        self.folder = output.with_name(f"{output.name}.training")
        check_ours(self.folder)
        if not resume:
            self.remove()

    def has(self, name: str, identity: Any) -> bool:
        """Whether the task is finished, with the same settings and data."""
        return self._mark(name, identity).fits() is True

    def add(self, name: str, identity: Any) -> None:
        """The task's folder is written."""
        self._mark(name, identity).write()

    def remove(self) -> None:
        """All are finished, or all begin anew."""
        self._mark("run", None).end()

    def _mark(self, name: str, identity: Any) -> Mark:
        return Mark(self.folder / f"{name}.id", identity)
