"""`NAME=VALUE` arguments of the command line."""

from collections.abc import Sequence
from pathlib import Path

from attentune.errors import ConfigError


def named(entries: Sequence[str], wanted: str, bare: bool = False) -> dict[str, str]:
    """NAME=VALUE texts -> values by name; with `bare` a path alone is named by its last part.

    Raises:
        ConfigError: a text of another form than the `wanted` one, or two of one name.
    """
    found: dict[str, str] = {}
    for entry in entries:
        name, equals, value = entry.partition("=")
        if bare and not equals:
            name, equals, value = Path(entry).name, "=", entry
        if not (name and equals and value):
            raise ConfigError(f"{wanted}, found {entry!r}")
        if name in found:
            raise ConfigError(f"two tasks are named {name!r}; give each its own name")
        found[name] = value
    return found
