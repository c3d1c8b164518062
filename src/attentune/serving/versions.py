"""The versions of a task: which answers, which did before, which is on trial."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attentune.errors import AttentuneError, ConflictError, StoreError
from attentune.serving.bank import Bank
from attentune.serving.entry import Entry
from attentune.serving.folder import Folder, move, take_away, version_id


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

    def to_json(self) -> dict[str, Any]:
        """As the folder keeps it."""
        return {"version": self.version.id, "share": self.share, "shadow": self.shadow}


@dataclass
class Served:
    """A task: the version that answers, earlier ones (the newest last), and one on trial."""

    active: Version
    earlier: list[Version] = field(default_factory=list[Version])
    trial: Trial | None = None

    @property
    def versions(self) -> list[Version]:
        """All of them."""
        return [*self.answering, *self.earlier]

    @property
    def answering(self) -> list[Version]:
        """Those that may answer now, heard or not."""
        return [self.active, *([self.trial.version] if self.trial else [])]


def read(name: str, folder: Folder, bank: Bank, old: Served | None = None) -> Served:
    """A task as it lies in the folder; versions that `old` has already are not read again.

    Raises what `Bank.stage` raises of the version that answers; another one that cannot be served is left out.
    """
    known = {version.id: version for version in old.versions} if old else {}
    trial, active = folder.trial(name), _version(name, folder.place(name), bank, known)
    served = Served(active)
    for place in folder.others(name):
        if place.name == active.id:
            continue
        with suppress(AttentuneError, OSError):
            version = _version(name, place, bank, known)
            if trial is not None and trial["version"] == version.id:
                served.trial = Trial(version, trial["share"], trial["shadow"])
            else:
                served.earlier.append(version)
    return served


def _version(name: str, place: Path, bank: Bank, known: dict[str, Version]) -> Version:
    identity = version_id(place)
    if identity in known:
        known[identity].entry.folder = place
        return known[identity]
    entry = bank.stage(name, place)
    if version_id(place) != identity:
        bank.tiers.drop(entry)
        raise StoreError("it changed while it was read")
    return Version(identity, entry)


def relocate(version: Version, place: Path) -> None:
    """Move a version's folder, in the place of whatever is there."""
    if version.entry.folder == place:
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    take_away(place)
    move(version.entry.folder, place)
    version.entry.folder = place


def exchange(folder: Folder, name: str, served: Served, new: Version) -> None:
    """Put another version where the one lies that answers, which becomes an earlier one.

    After an OSError all is as before. What answers alone is on trial no more; nor may it be again, where a kill left
    the trial of one that answers.
    """
    old, origin, trial = served.active, new.entry.folder, served.trial
    ends = trial is None or trial.version is new
    folder.versions(name).mkdir(parents=True, exist_ok=True)
    relocate(old, folder.aside(name))
    try:
        relocate(new, folder.place(name))
        if ends:
            folder.set_trial(name, None)
        relocate(old, folder.version(name, old.id))
        os.utime(old.entry.folder, follow_symlinks=False)  # The order of earlier versions is that of their ends.
    except OSError:
        relocate(new, origin)
        relocate(old, folder.place(name))
        if ends and trial is not None:
            folder.set_trial(name, trial.to_json())
        raise


def check_beside(name: str, served: Served | None, version: Version) -> None:
    """ConflictError unless a version may answer beside the one on trial, if there is one."""
    if served is not None and served.trial is not None:
        check_alike(name, served.trial.version, version, "end the trial first")


def check_alike(name: str, there: Version, new: Version, instead: str) -> None:
    """ConflictError unless one may answer in the place of the other; `instead` is what else can be done."""
    one, other = there.entry.card.task, new.entry.card.task
    if (one.kind, one.pair) != (other.kind, other.pair):
        kinds = [f"{task.kind}{' of pairs' if task.pair else ''}" for task in (one, other)]
        raise ConflictError(
            f"a version on trial answers the asks of {name!r}, which is {kinds[0]}, and the new version is {kinds[1]}; "
            f"{instead}, or put it under another name"
        )
    if one.labels != other.labels:
        odd = ", ".join(sorted(set(one.labels) ^ set(other.labels))[:5]) or "their order"
        raise ConflictError(
            f"a version on trial has the labels of the one that answers as {name!r}, and the new version differs in "
            f"{odd}; {instead}, or put it under another name"
        )
