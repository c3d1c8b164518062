"""An upload (a tar of an adapter folder) -> a folder; nothing else than the documented files ever touches the disk."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from attentune import store
from attentune.errors import DataError

GZIP = b"\x1f\x8b"
HEADS = 1_000_000
"""Bytes that a tar may have besides its files: heads, and the padding of blocks."""


def unpack(content: bytes, limit: int, folder: Path) -> None:
    """Write the known files of a tar (plain or gzip) into `folder`; they may lie in one folder of the tar.

    Raises:
        DataError: it is no tar, names a place outside, holds a link or a device, or unpacks to more than `limit` bytes.
        OSError: the disk does not take it.
    """
    for name, data in _files(content, limit):
        (folder / name).write_bytes(data)


class _Bounded:
    """A stream that gives `left` bytes at most, however small they were packed."""

    def __init__(self, stream: io.BufferedIOBase, limit: int) -> None:
        self.stream, self.limit, self.left = stream, limit, limit + HEADS

    def read(self, size: int) -> bytes:
        """The next bytes."""
        found = self.stream.read(size)
        self.left -= len(found)
        if self.left < 0:
            raise DataError(f"the upload unpacks to more than {self.limit} bytes")
        return found


def _files(content: bytes, limit: int) -> Iterator[tuple[str, bytes]]:
    raw = io.BytesIO(content)
    packed: Any = _Bounded(gzip.GzipFile(fileobj=raw) if content.startswith(GZIP) else raw, limit)
    try:
        # As a stream: nothing in a head makes tarfile go back, or read more than there is.
        with tarfile.open(fileobj=packed, mode="r|") as archive:
            yield from _members(archive)
    except DataError:
        raise
    except Exception as error:  # Hostile heads make tarfile and zlib raise nearly anything.
        raise DataError(f"the upload is no readable tar: {str(error).partition(chr(10))[0]}") from error


def _members(archive: tarfile.TarFile) -> Iterator[tuple[str, bytes]]:
    found = set[str]()
    for member in archive:
        path = PurePosixPath(member.name)
        if path.is_absolute() or ".." in path.parts:
            raise DataError(f"the upload names a place outside its folder: {member.name!r}")
        if member.isdir():
            continue
        if not member.isreg() or member.issparse():
            raise DataError(f"the upload holds {member.name!r}, which is no plain file")
        if path.name not in store.FILES or len(path.parts) > 2:
            raise DataError(f"the upload holds {member.name!r}; wanted are {', '.join(sorted(store.FILES))}")
        if path.name in found:
            raise DataError(f"the upload holds {path.name!r} twice")
        found.add(path.name)
        content = archive.extractfile(member)
        assert content is not None
        yield path.name, content.read()
