"""An upload (a tar of an adapter folder) -> a folder; nothing else than the documented files ever touches the disk."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path, PurePosixPath

from attentune import store
from attentune.errors import DataError


def unpack(content: bytes, folder: Path, limit: int) -> None:
    """Write the known files of a tar (plain or gzip) into `folder`; they may lie in one folder of the tar.

    Raises:
        DataError: it is no tar, names a place outside, holds a link or a device, or unpacks to more than `limit` bytes.
    """
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:*") as archive:
            _extract(archive, folder, limit)
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"the upload is no readable tar: {error}") from error


def _extract(archive: tarfile.TarFile, folder: Path, limit: int) -> None:
    left, found = limit, set[str]()
    for member in archive:
        path = PurePosixPath(member.name)
        if path.is_absolute() or ".." in path.parts:
            raise DataError(f"the upload names a place outside its folder: {member.name!r}")
        if member.isdir():
            continue
        if not member.isreg():
            raise DataError(f"the upload holds {member.name!r}, which is no plain file")
        if path.name not in store.FILES or len(path.parts) > 2:
            raise DataError(f"the upload holds {member.name!r}; wanted are {', '.join(sorted(store.FILES))}")
        if path.name in found:
            raise DataError(f"the upload holds {path.name!r} twice")
        found.add(path.name)
        left -= member.size
        if left < 0:
            raise DataError(f"the upload unpacks to more than {limit} bytes")
        content = archive.extractfile(member)
        assert content is not None
        (folder / path.name).write_bytes(content.read())
