"""What becomes of memory that is freed between two batches."""

import ctypes
import os
from collections.abc import Callable

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of glibc's malloc.h."""
KEPT, BLOCK = 2**31 - 1, 32 * 2**20
"""Bytes: so many freed ones stay, from blocks up to this size; both are the most that glibc takes."""
CHOSEN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
"""Environment variables by which somebody has decided."""


def keep_freed_memory() -> bool:
    """Keep freed memory in this process for the next batch; True where that could be asked for.

    By default glibc hands blocks of some megabytes back to the system, so that every batch pays for fresh pages. Only
    Linux with glibc can be asked; settings in the environment stay as they are.
    """
    if any(name in os.environ for name in CHOSEN):
        return False
    mallopt = _glibc("mallopt")
    return bool(mallopt and mallopt(M_MMAP_THRESHOLD, BLOCK) and mallopt(M_TRIM_THRESHOLD, KEPT))


def give_back_freed_memory() -> bool:
    """Hand what is freed back to the system now; True where that could be asked for and there was some."""
    trim = _glibc("malloc_trim")
    return bool(trim and trim(0))


def _glibc(name: str) -> Callable[..., int] | None:
    """A function of glibc; musl and macOS have none of these, Windows no process-wide library."""
    try:
        return getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError, TypeError):
        return None
