"""What a killed run leaves behind, and which run that was."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from attentune.errors import ConfigError


def digest(identity: Any) -> str:
    """A hash by which a run knows that what it finds is its own."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


class Checkpoints:
    """`<output>.training`: what a killed run leaves behind, and which run that was."""

    def __init__(self, output: Path, identity: Any) -> None:
        self.folder = output.with_name(f"{output.name}.training")
        self.identity = digest(identity)

    def start(self, writes: bool, resume: bool) -> str | None:
        """The checkpoint to go on from, or None for a fresh start; only the process that `writes` touches the disk.

        Raises:
            ConfigError: the checkpoints belong to another recipe, backbone or task.
        """
        mark = self.folder / "run.json"
        if resume and mark.is_file():
            if json.loads(mark.read_text(encoding="utf-8")) != self.identity:
                raise ConfigError(f"{self.folder} holds a run with other settings or data; start again without resume")
            return self._last_whole()
        if writes:
            self.remove()
            self.folder.mkdir(parents=True)
            mark.write_text(json.dumps(self.identity), encoding="utf-8")
        return None

    def _last_whole(self) -> str | None:
        """A kill while saving leaves a checkpoint without its state, which the Trainer writes last."""
        found: dict[int, Path] = {}
        for folder in self.folder.glob("checkpoint-*"):
            try:
                found[json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["global_step"]] = folder
            except (OSError, json.JSONDecodeError):
                continue
        return str(found[max(found)]) if found else None

    def remove(self) -> None:
        """The run is over, or a new one begins."""
        shutil.rmtree(self.folder, ignore_errors=True)


class Finished:
    """`<output>.training`: which of many tasks a killed run had finished, and as what."""

    def __init__(self, output: Path, resume: bool) -> None:
        self.folder = output.with_name(f"{output.name}.training")
        if not resume:
            self.remove()

    def has(self, name: str, identity: Any) -> bool:
        """Whether the task is finished, with the same settings and data."""
        mark = self._mark(name)
        return mark.is_file() and json.loads(mark.read_text(encoding="utf-8")) == digest(identity)

    def add(self, name: str, identity: Any) -> None:
        """The task's folder is written."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._mark(name).write_text(json.dumps(digest(identity)), encoding="utf-8")

    def remove(self) -> None:
        """All are finished, or all begin anew."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _mark(self, name: str) -> Path:
        return self.folder / f"{name}.json"
