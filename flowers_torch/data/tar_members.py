"""Files inside uncompressed tar archives, read without unpacking.

A path may lead into an archive: `set/0.tar/rose/1.jpg`. Members are found by their offset, in any order.
"""

import functools
import io
import os
import tarfile
from pathlib import Path, PurePosixPath
from typing import IO

from flowers_torch.errors import DataError, printable

SUFFIX = ".tar"


class Slice(io.RawIOBase):
    """A byte range of an open file, as a file of its own. Closing it closes the whole file."""

    def __init__(self, whole: IO[bytes], start: int, size: int) -> None:
        self.whole, self.start, self.size, self.position = whole, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.size}[whence]
        if base + offset < 0:
            raise OSError("negative position")  # as regular files do
        self.position = base + offset
        return self.position

    def tell(self) -> int:
        return self.position

    def readinto(self, buffer: "memoryview") -> int:  # type: ignore[override]
        count = max(0, min(len(buffer), self.size - self.position))
        self.whole.seek(self.start + self.position)
        found = self.whole.readinto(memoryview(buffer)[:count])  # type: ignore[attr-defined]
        self.position += found
        return int(found)

    def close(self) -> None:
        self.whole.close()
        super().close()


def split_path(path: Path) -> tuple[Path, str] | None:
    """Splits a path into archive and member; None if it does not lead into an archive."""
    for parent in path.parents:
        if parent.suffix.lower() == SUFFIX and parent.is_file():
            return parent, path.relative_to(parent).as_posix()
    return None


def open_member(archive: Path, member: str) -> IO[bytes]:
    """Opens a member for reading.

    Raises:
        DataError: the archive cannot be read or has no such member.
    """
    places = members(archive)
    if member not in places:
        raise DataError(f"{printable(archive)} holds no {printable(member)}", "check the path")
    return io.BufferedReader(Slice(archive.open("rb", buffering=0), *places[member]), 1 << 16)


def members(archive: Path) -> dict[str, tuple[int, int]]:
    """Name to (offset, size) of the regular files in an archive, cached until the archive changes.

    Raises:
        DataError: not an uncompressed tar, truncated, unsafe names, or a duplicate name.
    """
    try:
        status = archive.stat()
        return _members(archive, status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise DataError(
            f"cannot read {printable(archive)}: {error.strerror or error}", "check its access rights"
        ) from error


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
