"""Files inside uncompressed tar archives, read in any order without unpacking; paths: `set/0.tar/rose/1.jpg`."""

import functools
import io
import tarfile
from pathlib import Path, PurePosixPath
from typing import IO

from flowers_torch.errors import DataError, printable

SUFFIX = ".tar"
MAX_BYTES = 1024**3  # of a member


def split_path(path: Path) -> tuple[Path, str] | None:
    """Splits a path into archive and member; None if it does not lead into an archive."""
    for parent in path.parents:
        if parent.suffix.lower() == SUFFIX and parent.is_file():
            return parent, path.relative_to(parent).as_posix()
    return None


def open_member(archive: Path, member: str) -> IO[bytes]:
    """Reads a member into a file in memory; a `DataError` if there is none or it is larger than `MAX_BYTES`."""
    places = members(archive)
    if member not in places:
        raise DataError(f"{printable(archive)} holds no {printable(member)}", "check the path")
    offset, size = places[member]
    if size > MAX_BYTES:
        raise _unusable(archive, f"holds a file larger than {MAX_BYTES:,} bytes: {printable(member)}")
    with archive.open("rb") as file:
        file.seek(offset)
        return io.BytesIO(file.read(size))


def members(archive: Path) -> dict[str, tuple[int, int]]:
    """Name to (offset, size) of the regular files in an archive, cached until the archive changes.

    A `DataError` tells of a truncated archive, a compressed one, unsafe names, or a name that occurs twice.
    """
    try:
        status = archive.stat()
        return _members(archive, status.st_size, status.st_mtime_ns)
    except OSError as error:
        what = f"cannot read {printable(archive)}: {error.strerror or error}"
        raise DataError(what, "check its access rights") from error


@functools.cache
def _members(archive: Path, size: int, changed: int) -> dict[str, tuple[int, int]]:
    found: dict[str, tuple[int, int]] = {}
    try:
        with archive.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as content:
            for member in content:
                content.members.clear()  # type: ignore[attr-defined]  # else tarfile keeps all of them
                if not member.isreg() or member.issparse():
                    continue  # links are skipped; their targets are members themselves
                name = PurePosixPath(member.name)
                # guard: D35 shard
                if name.is_absolute() or ".." in name.parts or not name.parts or "\0" in member.name:
                    raise _unusable(archive, f"holds an unsafe path: {printable(member.name)}")
                if member.offset_data + member.size > size:
                    raise _unusable(archive, "is cut off")
                if str(name) in found:
                    raise _unusable(archive, f"holds {printable(name)} twice")
                found[str(name)] = (member.offset_data, member.size)
            # tarfile stops silently at a broken or missing header; a complete archive ends in zeros.
            file.seek(content.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise _unusable(archive, "is cut off: its end marker is missing")
    except tarfile.TarError as error:
        raise _unusable(archive, f"is not a valid uncompressed tar: {printable(error)}") from error
    return found


def _unusable(archive: Path, reason: str) -> DataError:
    return DataError(f"{printable(archive)} {reason}", "write it again, uncompressed")
