"""The tasks of a server: adapter folders on disk, their versions, and which version answers.

A version's id is a hash of its config, tensors and card. A new version is checked whole, in .incoming, before anything
that is served moves; a kill leaves the old one or the new one. All that there is to know stands in the folder, so that
several servers may share it: each catches up with what others changed before it answers.
"""

from __future__ import annotations

import logging
import os
import random
import shutil
import threading
from collections.abc import Callable, Generator, Hashable
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakSet

from attentune.errors import AttentuneError, ConfigError, ConflictError, StorageError, StoreError, UnknownTaskError
from attentune.serving.bank import Bank
from attentune.serving.folder import NAME_RULE, Folder, check_name, move, take_away, version_id, writing
from attentune.serving.held import Held
from attentune.serving.versions import Served, Trial, Version, check_alike, check_beside, exchange, read, relocate

log = logging.getLogger("attentune.serving")


@dataclass(frozen=True)
class Route:
    """Who answers one ask."""

    version: Version
    held: Held
    """Its row."""
    unheard: Held | None
    """The row of one that answers along, as a shadow."""


class Registry:
    """All tasks of a folder, in a bank."""

    def __init__(self, bank: Bank, folder: str | Path, keep: int = 5) -> None:
        """`keep` is how many earlier versions of a task stay on disk, ConfigError below 0."""
        if keep < 0:
            raise ConfigError(f"earlier versions that are kept are 0 at least, found {keep}")
        self.bank, self.folder, self.keep = bank, Folder(folder), keep
        # Here alone: one that is gone later, as a disk that is taken out, has not lost its tasks.
        self.folder.path.mkdir(parents=True, exist_ok=True)
        self._tasks: dict[str, Served] = {}
        self._stamps: dict[str, Hashable] = {}
        self._seen = ""
        self._misnamed: set[str] = set()
        self._unread: WeakSet[Version] = WeakSet()
        self._changing = threading.RLock()
        self._draw = random.Random()

    @property
    def names(self) -> list[str]:
        """The tasks, in order of name."""
        return [name for name, _ in self.tasks]

    @property
    def tasks(self) -> list[tuple[str, Served]]:
        """The same, with what is served under each name now."""
        return sorted(self._tasks.items())

    def __contains__(self, name: str) -> bool:
        return name in self._tasks

    def task(self, name: str) -> Served:
        """The task of a name, or UnknownTaskError."""
        found = self._tasks.get(name)
        if found is None:
            raise UnknownTaskError(f"there is no task {name!r}")
        return found

    def is_cold(self, name: str) -> bool:
        """Whether something that may answer now is on the disk alone."""
        served, tiers = self._tasks.get(name), self.bank.tiers
        there = served.answering if served else []
        return any(v.entry not in tiers.hot.rows and v.entry not in tiers.warm.rows for v in there)

    def route(self, name: str, active: bool = False) -> Route:
        """The version that answers this ask, and the one that answers along unheard.

        With `active` a version on trial for a share of the asks is not drawn.

        Raises:
            UnknownTaskError: there is no such task.
            StorageError: its row cannot be read; what was asked is not at fault.
        """
        while True:
            served = self.task(name)
            heard, unheard = self._chosen(served, active)
            try:
                return Route(heard, self.bank.hold(heard.entry), self._along(unheard))
            except StoreError as error:
                # A version that was cold and has moved meanwhile, perhaps by another server that is not done yet.
                with self._changing, self.folder.alone():
                    with suppress(AttentuneError, OSError):
                        self.catch_up()
                        self._load(name)
                    if self._tasks.get(name) == served and heard in served.answering:
                        raise StorageError(str(error)) from error

    def _chosen(self, served: Served, active: bool) -> tuple[Version, Version | None]:
        trial = served.trial
        if trial is None:
            return served.active, None
        if trial.shadow:
            return served.active, trial.version
        drawn = not active and self._draw.random() < trial.share
        return (trial.version if drawn else served.active), None

    def _along(self, unheard: Version | None) -> Held | None:
        """The row of a shadow; one that cannot be read must not cost the answer that is heard."""
        if unheard is None:
            return None
        try:
            return self.bank.hold(unheard.entry)
        except StoreError as error:
            if unheard not in self._unread:
                log.warning("shadow %s of task %r does not answer along: %s", unheard.id, unheard.entry.name, error)
            self._unread.add(unheard)
            return None

    def catch_up(self) -> None:
        """Read the folder again if another server has changed it."""
        if self.folder.revision() != self._seen:
            with self._changing:
                if self.folder.revision() != self._seen:
                    self.scan()

    def scan(self, report: Callable[[str], None] = lambda line: None) -> bool:
        """Make the tasks those of the folder: new and changed ones are loaded, vanished ones go -> whether any did.

        A folder that cannot be served is reported and left alone until it changes; what was served under its name goes
        on.
        """
        with self._changing:
            with self.folder.alone():
                self.folder.recover()
            # Before anything is read: what changes from now on is another revision.
            seen = self.folder.revision()
            found = self.folder.names()
            if self._seen and not seen and not found:
                raise StorageError("the served folder is empty and has lost its mark, as one that is not mounted")
            misnamed = set(self.folder.misnamed())
            for name in sorted(misnamed - self._misnamed):
                report(f"{name} is not served: {NAME_RULE}")
            self._misnamed = misnamed
            changed = False
            for name in found:
                try:
                    changed |= self._load(name)
                except Exception as error:  # One folder, whatever is in it, must not keep the others from being served.
                    report(f"{name}: {_line(error)}")
            if vanished := self._tasks.keys() - set(found):
                # A task whose version is being replaced is not there for a moment.
                with self.folder.alone():
                    for name in [n for n in vanished if not self.folder.place(n).is_dir()]:
                        self._forget(name)
                        changed = True
            self._seen = seen
            return changed

    def follow(self, report: Callable[[str], None] = lambda line: None) -> None:
        """Somebody has changed the folder by hand: read it again, and tell the other servers if it matters."""
        if self.scan(report) and os.access(self.folder.path, os.W_OK):
            self.folder.changed()

    def put(self, name: str, fill: Callable[[Path], None], share: float | None = None, shadow: bool = False) -> Version:
        """Serve an adapter folder under a name: at once, or on trial for a share of the asks or as a shadow.

        `fill` writes the folder's files into an empty folder. The version that answers already stays as it is; the one
        on trial answers from now on when it is put without a trial. Raises what `fill` and `Bank.stage` raise,
        ConfigError for a name or share that cannot be, ConflictError for a trial beside another one, for a version of
        another kind or of other labels than the one that it is tried beside, and StorageError when the disk is full.
        """
        check_name(name)
        if share is not None and not 0 < share <= 1:
            raise ConfigError(f"a share lies above 0 and is 1 at most, found {share}")
        with writing():
            self.catch_up()
        if (share is not None or shadow) and name not in self._tasks:
            raise UnknownTaskError(f"there is no task {name!r} to try a version of")
        incoming = self.folder.incoming()
        try:
            with writing():
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
            with self._change(name):
                served = self._tasks.get(name)
                if served is not None and served.active.id == version.id:
                    self._discard(version)
                    return served.active
                if share is not None or shadow:
                    self._try(name, version, share or 1.0, shadow)
                elif served is not None and served.trial is not None and served.trial.version.id == version.id:
                    self._discard(version)
                    return self._promote(name, served.trial)
                else:
                    check_beside(name, served, version)
                    self._activate(name, version)
        except Exception:
            if version.entry.folder != self.folder.place(name):
                self._discard(version)
            raise
        return version

    def remove(self, name: str) -> None:
        """Take a task and all its versions away, from the disk too."""
        with self._change(name):
            self.task(name)
            # Versions first: a kill leaves the task as it was, or nothing of it.
            shutil.rmtree(self.folder.versions(name), ignore_errors=True)
            gone = self.folder.incoming()
            gone.parent.mkdir(parents=True, exist_ok=True)
            move(self.folder.place(name), gone)
            self._forget(name)
            take_away(gone)

    def roll_back(self, name: str, version: str | None = None) -> Version:
        """Let an earlier version answer again: the last one, or the one of that id.

        Raises what `Bank.stage` raises, and ConflictError where there is none, or one on trial that is not alike.
        """
        with self._change(name):
            served = self.task(name)
            there = [v for v in served.earlier if version in (None, v.id)]
            if not there:
                ids = ", ".join(v.id for v in served.earlier) or "none"
                raise ConflictError(
                    f"no earlier version {version or ''} of {name!r}; there are {ids}".replace("  ", " ")
                )
            chosen = there[-1]
            check_beside(name, served, chosen)
            # Checked again: its files may have changed while it slept.
            again = Version(chosen.id, self.bank.stage(name, chosen.entry.folder))
            self._activate(name, again)
            return again

    def end_trial(self, name: str, promote: bool) -> None:
        """Let the version on trial answer from now on, or take it away."""
        with self._change(name):
            served = self.task(name)
            trial = served.trial
            if trial is None:
                raise ConflictError(f"no version of {name!r} is on trial")
            if promote:
                self._promote(name, trial)
            else:
                served.trial = None
                self.folder.set_trial(name, None)
                self._discard(trial.version)

    @contextmanager
    def _change(self, name: str) -> Generator[None]:
        """Alone with the folder, knowing all of it; afterwards the others are told."""
        with writing(), self._changing:
            self.catch_up()  # Before anything is written: what is there may not be the folder.
            with self.folder.changing() as revision:
                self.catch_up()
                self._stamps.pop(name, None)
                yield
                self._seen = revision  # Not after an error: then it is read again what there is.

    def _load(self, name: str) -> bool:
        stamp, old = self.folder.stamp(name), self._tasks.get(name)
        if stamp is not None and self._stamps.get(name) == stamp:
            return False
        try:
            served = read(name, self.folder, self.bank, old)
        except Exception:
            # What fails as it lies there fails again; what moves meanwhile may not.
            if self.folder.stamp(name) == stamp:
                self._stamps[name] = stamp
            raise
        if old != served:
            self._serve(name, served, old)
        self._stamps[name] = stamp
        return old != served

    def _serve(self, name: str, served: Served, old: Served | None) -> None:
        self.bank.publish(served.active.entry)
        self._tasks[name] = served
        for version in {*served.versions, *(old.versions if old else ())}:
            if version not in served.answering:
                self.bank.tiers.drop(version.entry)

    def _try(self, name: str, version: Version, share: float, shadow: bool) -> None:
        served = self.task(name)
        if served.trial is not None:
            raise ConflictError(f"version {served.trial.version.id} of {name!r} is on trial already; end that first")
        check_alike(name, served.active, version, "put it without a trial")
        relocate(version, self.folder.version(name, version.id))
        trial = Trial(version, share, shadow)
        self.folder.set_trial(name, trial.to_json())
        served.earlier = [v for v in served.earlier if v.id != version.id]
        served.trial = trial

    def _promote(self, name: str, trial: Trial) -> Version:
        self._activate(name, trial.version)
        self.task(name).trial = None
        return trial.version

    def _activate(self, name: str, version: Version) -> None:
        served, place = self._tasks.get(name), self.folder.place(name)
        if served is None:
            if place.exists():
                raise ConflictError(
                    f"the served folder holds a {name!r} that cannot be served; take it away there first"
                )
            # Its versions may have stayed when the task was taken out by hand; a trial of then is none of this one.
            self.folder.set_trial(name, None)
            relocate(version, place)
            self._serve(name, read(name, self.folder, self.bank, Served(version)), None)
            return
        old = served.active
        exchange(self.folder, name, served, version)
        take_away(self.folder.version(name, version.id))  # An earlier copy of what answers now.
        self.bank.publish(version.entry)
        self.bank.tiers.drop(old.entry)
        served.active = version
        served.earlier = [v for v in served.earlier if v.id not in (old.id, version.id)] + [old]
        for gone in served.earlier[: -self.keep or None]:
            self._discard(gone)
        served.earlier = served.earlier[-self.keep :] if self.keep else []

    def _discard(self, version: Version) -> None:
        self.bank.tiers.drop(version.entry)
        take_away(version.entry.folder)

    def _forget(self, name: str) -> None:
        served = self._tasks.pop(name)
        self._stamps.pop(name, None)
        self.bank.remove(name)
        if served.trial is not None:
            self.bank.tiers.drop(served.trial.version.entry)


def _line(error: Exception) -> str:
    """What stands against a folder, on one line."""
    told = str(error) if isinstance(error, (AttentuneError, OSError)) else f"{type(error).__name__}: {error}"
    return " ".join(told.split())
