"""The tasks of a server: adapter folders on disk, their versions, and which version answers.

    DIR/<task>/                     the version that answers
    DIR/.versions/<task>/<id>/      earlier ones, and one that is on trial
    DIR/.incoming/                  uploads that are being checked
    DIR/.<task>.old/                what answers, while another version takes its place

A version's id is a hash of its tensors and its card. A new version is checked whole, in .incoming, before anything that
is served moves; a kill leaves the old one or the new one.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import shutil
import threading
import uuid
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from attentune import store
from attentune.errors import AttentuneError, ConfigError, ConflictError, StorageError, StoreError, UnknownTaskError
from attentune.serving.bank import Bank, Entry, Held

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True, eq=False)
class Version:
    """One version of a task."""

    id: str
    entry: Entry


@dataclass(frozen=True)
class Trial:
    """A version that answers a share of the asks, or, as a shadow, answers along without being heard."""

    version: Version
    share: float
    shadow: bool


@dataclass
class Served:
    """A task: the version that answers, earlier ones (the newest last), and one on trial."""

    active: Version
    earlier: list[Version] = field(default_factory=list[Version])
    trial: Trial | None = None


class Registry:
    """All tasks of a folder, in a bank."""

    def __init__(self, bank: Bank, folder: str | Path, keep: int = 5) -> None:
        """`keep` is how many earlier versions of a task stay on disk."""
        self.bank, self.folder, self.keep = bank, Path(folder).expanduser().absolute(), keep
        self._tasks: dict[str, Served] = {}
        self._changing = threading.RLock()
        self._draw = random.Random()

    @property
    def names(self) -> list[str]:
        """The tasks, in order of name."""
        return sorted(self._tasks)

    def task(self, name: str) -> Served:
        """The task of a name, or UnknownTaskError."""
        found = self._tasks.get(name)
        if found is None:
            raise UnknownTaskError(f"there is no task {name!r}")
        return found

    def route(self, name: str) -> tuple[Held, Held | None]:
        """The version that answers this ask, and the one that answers along unheard.

        Raises:
            UnknownTaskError: there is no such task.
            StoreError: its row cannot be read.
        """
        while True:
            served = self.task(name)
            heard, unheard = self._chosen(served)
            try:
                return self.bank.hold(heard.entry), None if unheard is None else self.bank.hold(unheard.entry)
            except StoreError:
                # A version that was cold and has moved meanwhile: its place is another one now.
                if self._tasks.get(name) is served and self._serves(served, heard, unheard):
                    raise

    def _chosen(self, served: Served) -> tuple[Version, Version | None]:
        trial = served.trial
        if trial is None:
            return served.active, None
        if trial.shadow:
            return served.active, trial.version
        return (trial.version if self._draw.random() < trial.share else served.active), None

    def _serves(self, served: Served, *versions: Version | None) -> bool:
        there = (served.active, served.trial.version if served.trial else None)
        return all(version is None or version in there for version in versions)

    def scan(self, report: Callable[[str], None] = lambda line: None) -> None:
        """Make the tasks those of the folder: new and changed ones are loaded, vanished ones go.

        A folder that cannot be served is reported, and what was served under its name goes on.
        """
        with self._changing:
            self.folder.mkdir(parents=True, exist_ok=True)
            for left in self.folder.glob(".*.old"):
                store.recover(left.with_name(left.name[1:].removesuffix(".old")))
            found = {p.name: p for p in sorted(self.folder.iterdir()) if p.is_dir() and NAME.fullmatch(p.name)}
            for name, place in found.items():
                try:
                    self._load(name, place)
                except (AttentuneError, OSError) as error:
                    report(f"{name}: {error}")
            for name in [n for n in self._tasks if n not in found]:
                self._forget(name)

    def put(self, name: str, fill: Callable[[Path], None], share: float | None = None, shadow: bool = False) -> Version:
        """Serve an adapter folder under a name: at once, or on trial for a share of the asks or as a shadow.

        `fill` writes the folder's files into an empty folder. The version that answers already stays as it is. Raises
        what `fill` and `Bank.stage` raise, ConfigError for a name or share that cannot be, and StorageError when the
        disk is full.
        """
        _check_name(name)
        if share is not None and not 0 < share <= 1:
            raise ConfigError(f"a share lies above 0 and is 1 at most, found {share}")
        if (share is not None or shadow) and name not in self._tasks:
            raise UnknownTaskError(f"there is no task {name!r} to try a version of")
        incoming = self.folder / ".incoming" / uuid.uuid4().hex
        try:
            with _writing():
                incoming.mkdir(parents=True)
                fill(incoming)
            entry = self.bank.stage(name, incoming)
        except AttentuneError as error:
            shutil.rmtree(incoming, ignore_errors=True)
            raise type(error)(str(error).replace(str(incoming), name).replace(incoming.name, name)) from error
        except Exception:
            shutil.rmtree(incoming, ignore_errors=True)
            raise
        version = Version(version_id(incoming), entry)
        try:
            with self._changing, _writing():
                served = self._tasks.get(name)
                if served is not None and served.active.id == version.id:
                    self._discard(version)
                    return served.active
                if share is not None or shadow:
                    self._try(name, version, share or 1.0, shadow)
                else:
                    self._activate(name, version)
        except Exception:
            self._discard(version)
            raise
        return version

    def remove(self, name: str) -> None:
        """Take a task and all its versions away, from the disk too."""
        with self._changing, _writing():
            self.task(name)
            # Versions first: a kill leaves the task as it was, or nothing of it.
            shutil.rmtree(self._versions(name), ignore_errors=True)
            gone = self.folder / ".incoming" / uuid.uuid4().hex
            gone.parent.mkdir(parents=True, exist_ok=True)
            os.rename(self.folder / name, gone)
            self._forget(name)
            shutil.rmtree(gone, ignore_errors=True)

    def roll_back(self, name: str, version: str | None = None) -> Version:
        """Let an earlier version answer again: the last one, or the one of that id."""
        with self._changing, _writing():
            served = self.task(name)
            there = [v for v in served.earlier if version in (None, v.id)]
            if not there:
                ids = ", ".join(v.id for v in served.earlier) or "none"
                raise ConflictError(
                    f"no earlier version {version or ''} of {name!r}; there are {ids}".replace("  ", " ")
                )
            chosen = there[-1]
            # Checked again: its files may have changed while it slept.
            again = Version(chosen.id, self.bank.stage(name, chosen.entry.folder))
            served.earlier.remove(chosen)
            self._activate(name, again)
            return again

    def end_trial(self, name: str, promote: bool) -> None:
        """Let the version on trial answer from now on, or take it away."""
        with self._changing, _writing():
            served = self.task(name)
            trial = served.trial
            if trial is None:
                raise ConflictError(f"no version of {name!r} is on trial")
            served.trial = None
            if promote:
                self._activate(name, trial.version)
            else:
                self._discard(trial.version)

    def _load(self, name: str, place: Path) -> None:
        identity = version_id(place)
        served = self._tasks.get(name)
        if served is not None and served.active.id == identity:
            return
        version = Version(identity, self.bank.stage(name, place))
        if served is not None:
            self.bank.tiers.drop(served.active.entry)
            served.active = version
        else:
            self._tasks[name] = Served(version, self._earlier(name, identity))
        self.bank.publish(version.entry)

    def _earlier(self, name: str, active: str) -> list[Version]:
        """Versions that an earlier server left, oldest first; one that cannot be served any more is none."""
        found: list[Version] = []
        for place in sorted(self._versions(name).glob("*"), key=lambda p: p.stat().st_mtime):
            with suppress(AttentuneError, OSError):
                if place.name != active:
                    found.append(Version(place.name, self.bank.stage(name, place)))
                    self.bank.tiers.drop(found[-1].entry)
        return found

    def _try(self, name: str, version: Version, share: float, shadow: bool) -> None:
        served = self.task(name)
        if served.trial is not None:
            raise ConflictError(f"version {served.trial.version.id} of {name!r} is on trial already; end that first")
        self._move(version, self._versions(name) / version.id)
        served.earlier = [v for v in served.earlier if v.id != version.id]
        served.trial = Trial(version, share, shadow)

    def _activate(self, name: str, version: Version) -> None:
        served, place = self._tasks.get(name), self.folder / name
        if served is None:
            if place.exists():
                raise ConflictError(
                    f"the served folder holds a {name!r} that cannot be served; take it away there first"
                )
            self._move(version, place)
            self.bank.publish(version.entry)
            self._tasks[name] = Served(version)
            return
        old = served.active
        self._versions(name).mkdir(parents=True, exist_ok=True)
        self._move(old, store.aside(place))
        try:
            self._move(version, place)
        except OSError:
            self._move(old, place)
            raise
        self._move(old, self._versions(name) / old.id)
        self.bank.publish(version.entry)
        self.bank.tiers.drop(old.entry)
        served.active = version
        served.earlier = [v for v in served.earlier if v.id not in (old.id, version.id)] + [old]
        for gone in served.earlier[: -self.keep or None]:
            self._discard(gone)
        served.earlier = served.earlier[-self.keep :] if self.keep else []

    def _move(self, version: Version, place: Path) -> None:
        if version.entry.folder == place:
            return
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(place, ignore_errors=True)
        os.rename(version.entry.folder, place)
        version.entry.folder = place

    def _discard(self, version: Version) -> None:
        self.bank.tiers.drop(version.entry)
        shutil.rmtree(version.entry.folder, ignore_errors=True)

    def _forget(self, name: str) -> None:
        served = self._tasks.pop(name)
        self.bank.remove(name)
        if served.trial is not None:
            self.bank.tiers.drop(served.trial.version.entry)

    def _versions(self, name: str) -> Path:
        return self.folder / ".versions" / name


def copy_of(folder: Path) -> Callable[[Path], None]:
    """What fills a folder with the files of an adapter folder, and nothing else that lies there."""

    def fill(target: Path) -> None:
        for name in sorted(store.FILES):
            if (folder / name).is_file():
                shutil.copyfile(folder / name, target / name)

    return fill


@contextmanager
def _writing() -> Generator[None]:
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
    for name in (store.CONFIG, store.WEIGHTS, store.CARD):
        try:
            found.update((folder / name).read_bytes())
        except OSError as error:
            raise StoreError(f"{folder.name} is no adapter folder: it has no {name}") from error
    return found.hexdigest()[:12]


def _check_name(name: str) -> None:
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"a task's name has letters, digits, '.', '_' and '-', begins with a letter or digit and is 128 long at "
            f"most; found {name[:140]!r}"
        )
