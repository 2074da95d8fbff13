"""Files inside plain tar archives, read where they lie: a path may lead into one, as `set/0.tar/rose/1.jpg`.

Nothing is unpacked, so a set may be larger than any disk cache, and a member is found by its place in the
archive, so photos can be taken in any order: an epoch is shuffled as a whole, and resuming is exact.
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
    """A part of an open file, as a file of its own; closing it closes the whole."""

    def __init__(self, whole: IO[bytes], start: int, size: int) -> None:
        self.whole, self.start, self.size, self.position = whole, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.size}[whence]
        if base + offset < 0:
            raise OSError("negative position")  # as files do
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
    """The archive and the member that a path leads to; None where it leads into no archive."""
    for parent in path.parents:
        if parent.suffix.lower() == SUFFIX and parent.is_file():
            return parent, path.relative_to(parent).as_posix()
    return None


def open_member(archive: Path, member: str) -> IO[bytes]:
    """Opens a member for reading.

    Raises:
        DataError: the archive cannot be read, or has no such member.
    """
    places = members(archive)
    if member not in places:
        raise DataError(f"{printable(archive)} holds no {printable(member)}", "check the path")
    return io.BufferedReader(Slice(archive.open("rb", buffering=0), *places[member]), 1 << 16)


def members(archive: Path) -> dict[str, tuple[int, int]]:
    """Regular files of an archive: normalised name to first byte and size. Remembered until it changes.

    Raises:
        DataError: no plain tar, cut off, with unsafe names or a name twice.
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
                content.members.clear()  # type: ignore[attr-defined]  # tarfile would keep them all
                if not member.isreg() or member.issparse():
                    continue  # links lead elsewhere; what they lead to is listed itself
                name = PurePosixPath(member.name)
                # guard: D35 shard
                if name.is_absolute() or ".." in name.parts or not name.parts or "\0" in member.name:
                    raise _unusable(archive, f"holds an unsafe path: {printable(member.name)}")
                if member.offset_data + member.size > size:
                    raise _unusable(archive, "is cut off")
                if str(name) in found:
                    raise _unusable(archive, f"holds {printable(name)} twice")
                found[str(name)] = (member.offset_data, member.size)
            # tarfile ends quietly at a broken or missing header; only a block of zeros is a true end.
            file.seek(content.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise _unusable(archive, "is cut off: it ends before its end mark")
    except tarfile.TarError as error:
        raise _unusable(archive, f"is no plain tar: {printable(error)}") from error
    return found


def _unusable(archive: Path, why: str) -> DataError:
    return DataError(f"{printable(archive)} {why}", "write it again, uncompressed")
