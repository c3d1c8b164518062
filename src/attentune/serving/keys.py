"""API keys: who may predict, who may administer, and whose tasks a key sees.

A key is 32 random bytes; the file holds their SHA-256, which for random keys needs no salt and no slow hash.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from attentune.errors import ConfigError, StoreError

SCOPES = ("predict", "admin")
HASH = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class Key:
    """What is known of a key; never the key itself."""

    name: str
    sha256: str
    scopes: tuple[str, ...] = ("predict",)
    tasks: tuple[str, ...] | None = None
    """The tasks that it sees; None: all."""

    def sees(self, task: str) -> bool:
        """Whether the task exists for this key."""
        return self.tasks is None or task in self.tasks


EVERYONE = Key("everyone", "", SCOPES)
"""Who asks a server that has no keys."""


class Keys:
    """The keys of a server; without a file everyone may do everything."""

    def __init__(self, keys: Sequence[Key] | None = None) -> None:
        self.keys = None if keys is None else tuple(keys)

    @classmethod
    def read(cls, path: Path) -> Keys:
        """A keys file, or StoreError."""
        try:
            return cls([_key(entry) for entry in json.loads(path.read_text(encoding="utf-8"))["keys"]])
        except (KeyError, TypeError, RecursionError) as error:
            raise StoreError(f'{path} is no file of keys: wanted is {{"keys": [...]}}') from error
        except (OSError, ValueError) as error:
            raise StoreError(f"{path} is no file of keys: {error}") from error

    def find(self, given: str | None) -> Key | None:
        """The key that was given, if it is one of ours; every key is compared, each in constant time."""
        if self.keys is None:
            return EVERYONE
        digest = _digest(given or "")
        found: Key | None = None
        for key in self.keys:
            if hmac.compare_digest(key.sha256, digest):
                found = key
        return found


def add(path: Path, name: str, scopes: Sequence[str], tasks: Sequence[str] | None) -> str:
    """Write a new key's hash into a file of keys and return the key, which is shown this once.

    Raises:
        ConfigError: an unknown scope, or a name that is taken.
    """
    unknown = [scope for scope in scopes if scope not in SCOPES]
    if unknown or not scopes:
        raise ConfigError(f"scopes are {', '.join(SCOPES)}, found {', '.join(unknown) or 'none'}")
    keys = list(Keys.read(path).keys or ()) if path.is_file() else []
    if name in {key.name for key in keys}:
        raise ConfigError(f"a key named {name!r} is there already; choose another name")
    secret = secrets.token_urlsafe(32)
    keys.append(Key(name, _digest(secret), tuple(scopes), None if tasks is None else tuple(tasks)))
    fresh = path.with_name(f".{path.name}.new")
    fresh.touch(mode=0o600)
    fresh.write_text(json.dumps({"keys": [asdict(key) for key in keys]}, indent=2) + "\n", encoding="utf-8")
    fresh.rename(path)
    return secret


def _key(entry: Any) -> Key:
    """An entry of a file of keys; ValueError, which does not show it, where it is none."""
    known: dict[Any, Any] = entry if isinstance(entry, dict) else {}
    fields: list[Any] = [known.get(field) for field in ("name", "sha256", "scopes", "tasks")]
    name, sha256, scopes, tasks = fields
    texts = isinstance(name, str) and isinstance(sha256, str) and HASH.fullmatch(sha256)
    if not texts or not _names(scopes) or not set(scopes) <= set(SCOPES) or not (tasks is None or _names(tasks)):
        raise ValueError(
            f"a key is an object with a name, the sha256 of the key, scopes (a list of {', '.join(SCOPES)}) and tasks "
            "(a list, or null for all), as `attentune keys` writes it"
        )
    return Key(name, sha256, tuple(scopes), None if tasks is None else tuple(tasks))


def _names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in cast("list[Any]", value))


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
