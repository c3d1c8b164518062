"""What an adapter may cost: bytes of its file, latency beside the bare backbone."""

import re
from dataclasses import dataclass

from attentune.errors import ConfigError

UNITS = {"": 1, "B": 1, "KB": 1000, "MB": 1000**2, "KIB": 1024, "MIB": 1024**2}


@dataclass(frozen=True)
class Budget:
    """The most that is allowed; None: anything."""

    size: int | None = None
    """Bytes of `adapter_model.safetensors`, head included."""
    latency: float | None = None
    """Time of a forward pass with the adapter / without it."""


def parse_size(text: str | int) -> int:
    """'64KB', '0.5 MB', '70KiB' or a number of bytes -> bytes.

    Raises:
        ConfigError: it is none of them.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", str(text), re.IGNORECASE)
    if not found or found[2].upper() not in UNITS or float(found[1]) <= 0:
        raise ConfigError(f"a budget is a size such as 64KB, 70KiB or 0.5MB, found {text!r}")
    return int(float(found[1]) * UNITS[found[2].upper()])


def parse_latency(text: str | float) -> float:
    """'1.1x' or 1.1 -> 1.1, times the bare backbone's.

    Raises:
        ConfigError: it is no number, or below 1.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*[x×]?\s*", str(text), re.IGNORECASE)
    if not found or float(found[1]) < 1:
        raise ConfigError(f"a latency is a factor of at least 1 such as 1.1x, found {text!r}")
    return float(found[1])
