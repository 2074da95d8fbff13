"""Files inside uncompressed tar archives, read in any order without unpacking; paths: `set/0.tar/rose/1.jpg`."""

import functools
import io
import tarfile
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from itertools import accumulate
from pathlib import Path, PurePosixPath
from typing import IO, Any

from flowers_torch.errors import DataError, printable
from flowers_torch.files.reading import reading

SUFFIX = ".tar"
MAX_BYTES = 1024**3  # of a member
MAX_READ = 1 << 20  # bytes of one header and its extensions; only a hostile one makes tarfile read more


class HeaderReader:
    """A file for `tarfile`, which reads as many bytes as a header claims, and all if that is negative.

    Python 3.14 and the last releases of older ones read them piece by piece, so pieces are added up.
    """

    def __init__(self, file: Any) -> None:
        self.file, self.tell = file, file.tell
        self.pieces = 0  # bytes that were read in one go

    def seek(self, position: int) -> int:
        self.pieces = 0
        found: int = self.file.seek(position)
        return found

    def read(self, size: int) -> bytes:
        self.pieces += size
        if size < 0 or self.pieces > MAX_READ:  # guard: S4 tar
            raise tarfile.ReadError(f"a header claims {size if size < 0 else self.pieces:,} bytes or more")
        content: bytes = self.file.read(size)
        return content


class Members(Mapping[str, tuple[int, int]]):
    """Name to (offset, size), sorted by name: a fifth of the memory of a dict, of which every process has its own."""

    def __init__(self, places: Mapping[str, tuple[int, int]]) -> None:
        names = sorted((name.encode("utf-8", "surrogateescape"), name) for name in places)
        self.names = b"".join(encoded for encoded, _ in names)
        self.starts = array("Q", accumulate((len(encoded) for encoded, _ in names), initial=0))
        self.offsets, self.sizes = (array("Q", [places[name][i] for _, name in names]) for i in (0, 1))

    def __len__(self) -> int:
        return len(self.offsets)

    def __iter__(self) -> Iterator[str]:
        return (self._encoded(place).decode("utf-8", "surrogateescape") for place in range(len(self)))

    def __getitem__(self, name: str) -> tuple[int, int]:
        encoded = name.encode("utf-8", "surrogateescape")
        place = bisect_left(range(len(self)), encoded, key=self._encoded)
        if place == len(self) or self._encoded(place) != encoded:
            raise KeyError(name)
        return self.offsets[place], self.sizes[place]

    def _encoded(self, place: int) -> bytes:
        return self.names[self.starts[place] : self.starts[place + 1]]


def open_tar(file: Any) -> Any:
    """A tar archive in an open file, with bounded headers."""
    return tarfile.open(fileobj=HeaderReader(file), mode="r:")  # type: ignore[call-overload]


def tar_entries(content: Any) -> Iterator[tarfile.TarInfo]:
    """The members of an archive from `open_tar`, which does not keep them."""
    for member in content:
        content.fileobj.pieces = 0
        yield member
        content.members.clear()  # else tarfile keeps all of them


def split_path(path: Path) -> tuple[Path, str] | None:
    """Splits a path into archive and member; None if it does not lead into an archive."""
    for parent in path.parents:
        if parent.suffix.lower() == SUFFIX and parent.is_file():
            return parent, path.relative_to(parent).as_posix()
    return None


def open_member(archive: Path, member: str) -> IO[bytes]:
    """Reads a member into a file in memory; a `DataError` if there is none or it is larger than `MAX_BYTES`."""
    place = members(archive).get(member)
    if place is None:
        raise DataError(f"{printable(archive)} holds no {printable(member)}", "check the path")
    offset, size = place
    if size > MAX_BYTES:
        raise _unusable(archive, f"holds a file larger than {MAX_BYTES:,} bytes: {printable(member)}")
    with archive.open("rb") as file:
        file.seek(offset)
        return io.BytesIO(file.read(size))


def members(archive: Path) -> Members:
    """Name to (offset, size) of the regular files in an archive, cached until the archive changes.

    A `DataError` tells of a truncated archive, a compressed one, unsafe names, or a name that occurs twice.
    """
    with reading(archive, "a valid uncompressed tar", DataError, "write it again, uncompressed"):  # guard: S8 tar
        status = archive.stat()
        return _members(archive, status.st_size, status.st_mtime_ns)


@functools.cache
def _members(archive: Path, size: int, changed: int) -> Members:
    found: dict[str, tuple[int, int]] = {}
    with archive.open("rb") as file, open_tar(file) as content:
        for member in tar_entries(content):
            if member.size < 0:  # guard: S4 backwards
                raise _unusable(archive, "holds a file of a negative size")
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
    return Members(found)


def _unusable(archive: Path, reason: str) -> DataError:
    return DataError(f"{printable(archive)} {reason}", "write it again, uncompressed")
