"""The served folder on disk, which several servers may share.

    DIR/<task>/                     the version that answers
    DIR/.versions/<task>/<id>/      earlier ones, and one that is on trial
    DIR/.versions/<task>/trial.json which one that is
    DIR/.incoming/                  uploads that are being checked
    DIR/.<task>.aside/              what answers, while another version takes its place
    DIR/.lock                       held by the server that changes something
    DIR/.revision                   another text after every change

Who reads the revision by opening the file sees every change that was acknowledged before, on network file systems too:
they promise that what was closed is there for who opens.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Generator, Hashable
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

from attentune import store
from attentune.errors import ConfigError, StorageError, StoreError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
NAME_RULE = "a task's name has letters, digits, '.', '_' and '-', begins with a letter or digit and is 128 long at most"
ON_ITS_WAY = 86_400.0
"""Seconds after which nothing is half done still, but was left."""
PARTS = (store.CONFIG, store.WEIGHTS, store.CARD)


class Folder:
    """Places and marks in the folder of a server."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser().absolute()
        self._threads = threading.RLock()
        self._processes = FileLock(self.path / ".lock", thread_local=False)

    def names(self) -> list[str]:
        """What may be tasks, in order."""
        return sorted(p.name for p in self.path.iterdir() if p.is_dir() and NAME.fullmatch(p.name))

    def misnamed(self) -> list[str]:
        """Adapter folders that cannot be tasks, as their names are none of a task."""
        return sorted(
            p.name
            for p in self.path.iterdir()
            if (p / store.CONFIG).is_file() and not p.name.startswith(".") and not NAME.fullmatch(p.name)
        )

    def place(self, name: str) -> Path:
        """Where the version lies that answers."""
        return self.path / name

    def version(self, name: str, identity: str) -> Path:
        """Where a version lies that does not answer, or not alone."""
        return self.versions(name) / identity

    def versions(self, name: str) -> Path:
        """Where they all lie."""
        return self.path / ".versions" / name

    def others(self, name: str) -> list[Path]:
        """The versions that do not answer, oldest first."""
        with suppress(FileNotFoundError):
            there = [p for p in self.versions(name).iterdir() if p.is_dir()]
            return sorted(there, key=lambda p: p.stat().st_mtime_ns)
        return []

    def incoming(self) -> Path:
        """A place that is not there yet, for what is on its way."""
        return self.path / ".incoming" / uuid.uuid4().hex

    def aside(self, name: str) -> Path:
        """Where the version that answers lies while another takes its place.

        Not `store.aside`, from which whoever reads the task puts it back: this is for `recover`, under the lock.
        """
        return self.path / f".{name}.aside"

    @contextmanager
    def alone(self) -> Generator[None]:
        """Nobody else changes the folder meanwhile; one that cannot be written is not locked."""
        with self._threads:
            if not os.access(self.path, os.W_OK):
                yield
                return
            with self._processes:
                yield

    def recover(self) -> None:
        """Put back what a kill left aside, and take away what it left half done; nobody else may change the folder.

        What stood aside while another had its place already is an earlier version.
        """
        for left in self.path.glob(".*.old"):
            store.put_back(left, self.place(left.name[1:].removesuffix(".old")))
        for left in self.path.glob(".*.aside"):
            name = left.name[1:].removesuffix(".aside")
            with suppress(OSError, StoreError):  # A folder that cannot be written stays as it is.
                place = self.version(name, version_id(left)) if self.place(name).exists() else self.place(name)
                place.parent.mkdir(parents=True, exist_ok=True)
                take_away(place)
                move(left, place)
        for left in [*self.path.glob(".incoming/*"), *self.path.glob(".revision.*")]:
            with suppress(OSError):
                if time.time() - left.lstat().st_mtime > ON_ITS_WAY:
                    take_away(left) if left.is_dir() else left.unlink()

    def revision(self) -> str:
        """What changes with every change; empty before the first; OSError where the folder is gone or unreadable."""
        try:
            return (self.path / ".revision").read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            self.path.stat()
            return ""

    @contextmanager
    def changing(self) -> Generator[str]:
        """Alone with the folder, and the others are told afterwards, after an error too; gives the revision to be."""
        with self.alone():
            revision = uuid.uuid4().hex
            # Written before anything changes: a disk that is full must not keep a change from the others.
            fresh = self.path / f".revision.{revision}"
            try:
                fresh.write_text(revision, encoding="utf-8")
            except OSError:
                fresh.unlink(missing_ok=True)
                raise
            try:
                yield revision
            finally:
                fresh.rename(self.path / ".revision")

    def changed(self) -> None:
        """Tell the others that something is another."""
        with self.changing():
            pass

    def stamp(self, name: str) -> Hashable:
        """The same as long as no file of a task has changed; None: it is no task, or about to change."""
        try:
            parts = [(self.place(name) / part).stat() for part in PARTS]
        except OSError:
            return None
        others = tuple(p.name for p in self.others(name))
        # Not the time of the content: what may be read now, and could not before, is another.
        return tuple((p.st_ino, p.st_ctime_ns, p.st_size) for p in parts), others, self._trial(name)

    def trial(self, name: str) -> dict[str, Any] | None:
        """{"version", "share", "shadow"} of the version on trial."""
        text = self._trial(name)
        return None if text is None else json.loads(text)

    def set_trial(self, name: str, trial: dict[str, Any] | None) -> None:
        """Keep what is known of the trial, or forget it."""
        place = self.versions(name) / "trial.json"
        if trial is None:
            place.unlink(missing_ok=True)
        else:
            fresh = place.with_suffix(".new")
            fresh.write_text(json.dumps(trial), encoding="utf-8")
            fresh.rename(place)

    def _trial(self, name: str) -> str | None:
        with suppress(OSError):
            return (self.versions(name) / "trial.json").read_text(encoding="utf-8")
        return None


def copy_of(folder: Path) -> Callable[[Path], None]:
    """What fills a folder with the files of an adapter folder, and nothing else that lies there."""

    def fill(target: Path) -> None:
        for name in sorted(store.FILES):
            if (folder / name).is_file():
                shutil.copyfile(folder / name, target / name)

    return fill


def move(place: Path, target: Path) -> None:
    """Rename a folder, or the link to one, which leads where it led."""
    if place.is_symlink() and not place.readlink().is_absolute():
        target.symlink_to(place.resolve())
        place.unlink()
    else:
        os.rename(place, target)


def take_away(place: Path) -> None:
    """Remove a folder, or the link to one and not what it leads to, if it is there."""
    if place.is_symlink():
        place.unlink()
    else:
        shutil.rmtree(place, ignore_errors=True)


@contextmanager
def writing() -> Generator[None]:
    """What the disk has against it, as a StorageError."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"the served folder cannot be written: {error.strerror or error}; nothing has changed"
        ) from error


def version_id(folder: Path) -> str:
    """12 hex digits of what answers: config, tensors and card."""
    found = hashlib.sha256()
    for name in PARTS:
        try:
            found.update((folder / name).read_bytes())
        except OSError as error:
            raise StoreError(f"{folder.name} is no adapter folder: it has no {name}") from error
    return found.hexdigest()[:12]


def check_name(name: str) -> None:
    """ConfigError for a name that no task can have."""
    if not NAME.fullmatch(name):
        raise ConfigError(f"{NAME_RULE}; found {name[:140]!r}")
