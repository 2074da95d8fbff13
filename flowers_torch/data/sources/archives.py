"""Safe unpacking of archives: nothing outside of the target folder, no bombs, all files or none."""

import bz2
import contextlib
import errno
import glob
import gzip
import itertools
import lzma
import os
import re
import secrets
import shutil
import stat
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from flowers_torch.data.images import open_regular
from flowers_torch.data.sources.zip_names import zip_names
from flowers_torch.data.tar_members import open_tar, tar_entries
from flowers_torch.errors import DataError, ResourceError, printable
from flowers_torch.files.cache import CACHE_FIX
from flowers_torch.files.download import file_digest
from flowers_torch.files.reading import reading
from flowers_torch.files.system import caseless, ignores_case, replace

MAX_MEMBERS = 2_000_000
MAX_BYTES = 256 * 1024**3
MAX_RATIO = 100  # an archive that unpacks to more than this many times its size is a bomb
SMALL_BYTES = 64 * 1024**2  # allowed whatever the ratio
STALE_SECONDS = 24 * 3600
DEVICE_NAME = re.compile(r"con|prn|aux|nul|(com|lpt)[0-9¹²³]", re.IGNORECASE)  # of Windows
DRIVE = re.compile(r"[A-Za-z]:")
# What systems say of names that they do not take; Windows finds no file of a name that is too long.
UNFIT_NAME = {errno.ENAMETOOLONG, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.EILSEQ, errno.EINVAL, errno.ENOENT}
SUFFIXES = (".tar.gz", ".tar.bz2", ".tar.xz", ".tgz", ".tbz2", ".txz", ".tar", ".zip")


@contextlib.contextmanager
def staged_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder that is renamed to `folder` at the end of the block, or removed after an error.

    A folder of that name is therefore always complete. Leftovers of killed runs are removed after a day. A
    folder that cannot be written or a full disk is a `ResourceError`.
    """
    prefix = f".{folder.name}."
    staging = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for leftover in folder.parent.glob(f"{glob.escape(prefix)}*.partial"):
            if time.time() - leftover.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(leftover, ignore_errors=True)
        staging = folder.with_name(f"{prefix}{secrets.token_hex(8)}.partial")  # guard: D39
        staging.mkdir()  # unlike `mkdtemp` with the rights that the user's umask says
        yield staging
        replace(staging, folder)
    except OSError as error:
        if not (staging and folder.is_dir()):  # else another process finished the same content first
            raise _not_written(folder, error) from error
    finally:
        if staging:
            shutil.rmtree(staging, ignore_errors=True)


def _not_written(path: Path, error: OSError) -> ResourceError:
    what = f"cannot write {printable(path)}: {error.strerror or error}"
    return ResourceError(what, CACHE_FIX)


def extract_archive(archive: Path, folder: Path, max_members: int = MAX_MEMBERS, max_bytes: int = MAX_BYTES) -> Path:
    """Unpacks a tar (plain, gz, bz2, xz) or zip, recognized by its content, to `folder`.

    An existing `folder` is complete and is returned as it is.

    Raises:
        DataError: not an archive, truncated, damaged, encrypted, above the limits, or with members other than
            folders and regular files at relative paths.
        ResourceError: the disk is full or cannot be written.
    """
    if folder.is_dir():
        return folder
    with open_regular(archive) as file, staged_folder(folder) as staging:
        start = file.read(512)
        file.seek(0)
        target = _Target(staging, archive, max_members, max_bytes)
        with reading(archive, "a whole archive", DataError, "download it again"):  # guard: S8 archive
            if start[:4] == b"PK\x03\x04":
                _unpack_zip(file, target)
            else:
                _unpack_tar(_decompressor(start, archive)(file), target)
            if not target.members:
                raise EOFError("it holds no files")
    return folder


def extract_to_cache(archive: Path, cache: Path) -> Path:
    """Unpacks an archive into a folder of the cache that is named by the archive's content."""
    with open_regular(archive):  # raises errors that name the path
        digest = file_digest(archive)
    return extract_archive(archive, cache / f"{archive_name(archive)[:64]}-{digest[:12]}")


def archive_name(archive: Path) -> str:
    """The file name without its archive suffix."""
    length = next((len(suffix) for suffix in SUFFIXES if archive.name.lower().endswith(suffix)), 0)
    return archive.name[: len(archive.name) - length] or "archive"


def name_notes(archive: Path) -> list[str]:
    """What is to say about the names in an archive."""
    with open_regular(archive) as file:
        if not zipfile.is_zipfile(file):
            return []
        with reading(archive, "a whole archive", DataError, "download it again"), zipfile.ZipFile(file) as content:
            note = zip_names(content.infolist())[1]
    return [f"{printable(archive)}: {note}"] if note else []


class _Target:
    """Writes members below one folder and refuses unsafe paths and sizes beyond the limits."""

    def __init__(self, folder: Path, archive: Path, max_members: int, max_bytes: int) -> None:
        self.folder, self.archive, self.max_members = folder, archive, max_members
        self.members, self.bytes = 0, 0
        self.folders: dict[str, str] = {}  # that members lie in, by their caseless names
        self.max_bytes = min(max_bytes, max(SMALL_BYTES, MAX_RATIO * archive.stat().st_size))

    def path(self, name: str) -> Path:
        self.members += 1
        if self.members > self.max_members:  # guard: D37 members
            raise self.refuse(f"holds more than {self.max_members:,} members")
        components = safe_components(name)
        # guard: D35 archive
        if not components:
            raise self.refuse(f"holds an unsafe path: {printable(name)}")
        for folder in itertools.accumulate(components[:-1], lambda *names: "/".join(names)):
            known = self.folders.setdefault(caseless(folder), folder)
            if known != folder and ignores_case(self.folder):
                what = f"holds folders that are one on this disk: {printable(known)}, {printable(folder)}"
                raise DataError(f"archive {printable(self.archive)} {what}", "rename one of them, or use another disk")
        path = self.folder.joinpath(*components)
        if not path.resolve().is_relative_to(self.folder.resolve()):  # whatever `safe_components` overlooks
            raise self.refuse(f"holds a path that leads outside: {printable(name)}")
        return path

    def write(self, name: str, source: IO[bytes]) -> None:
        path = self.path(name)
        if os.path.lexists(path):
            raise self.refuse(f"holds {printable(name)} twice")
        with self.writing(name):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("xb")
        with file:
            while chunk := source.read(1 << 18):
                self.bytes += len(chunk)
                if self.bytes > self.max_bytes:  # guard: D37 bytes
                    raise self.refuse(f"unpacks to more than {self.max_bytes:,} bytes")
                with self.writing(name):
                    file.write(chunk)

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[None]:
        """Tells a full disk from names that the file system does not take, and both from errors of the archive."""
        try:
            yield
        except OSError as error:
            if error.errno in UNFIT_NAME:
                raise self.refuse(f"holds a name that cannot be written here: {printable(name)}") from error
            raise _not_written(self.folder, error) from error

    def refuse(self, reason: str) -> DataError:
        return DataError(f"archive {printable(self.archive)} {reason}", "unpack it yourself if you trust it")


def safe_components(name: str) -> list[str]:
    """The folders and the file name of a member; empty unless they are safe, in the spelling of any system."""
    path = name.replace("\\", "/")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    reserved = any(DEVICE_NAME.fullmatch(part.partition(".")[0].strip()) for part in parts)
    drive = any(DRIVE.match(part) for part in parts)
    return [] if path.startswith("/") or ".." in parts or "\0" in name or drive or reserved else parts


def _unpack_zip(file: IO[bytes], target: _Target) -> None:
    with zipfile.ZipFile(file) as content:
        members = content.infolist()
        for member, name in zip(members, zip_names(members)[0], strict=True):
            kind = stat.S_IFMT(member.external_attr >> 16)  # 0 in a zip that was made on Windows
            if member.flag_bits & 1:
                raise target.refuse("is encrypted")
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):  # guard: D36 zip
                raise target.refuse(f"holds a link or device: {printable(name)}")
            try:
                if name.endswith("/"):
                    with target.writing(name):
                        target.path(name).mkdir(parents=True, exist_ok=True)
                else:
                    with content.open(member) as source:  # reading to the end checks the CRC
                        target.write(name, source)
            except NotImplementedError as error:
                raise target.refuse("uses a compression that Python cannot read") from error


def _unpack_tar(stream: IO[bytes], target: _Target) -> None:
    reader = _ForwardReader(stream, target)
    with stream, open_tar(reader) as content:
        for member in tar_entries(content):
            if member.isdir():
                if member.name.strip("./"):  # not for "." itself
                    with target.writing(member.name):
                        target.path(member.name).mkdir(parents=True, exist_ok=True)
            elif member.isreg() and not member.issparse():
                with content.extractfile(member) as source:
                    target.write(member.name, source)
            else:
                # guard: D36 tar
                raise target.refuse(f"holds a link, device or sparse file: {printable(member.name)}")
        # tarfile stops silently at a broken or missing header; a complete archive ends in zeros.
        if reader.last != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("its end marker is missing")
        while reader.read(1 << 20):  # gzip checks its checksum at the end
            pass


class _ForwardReader:
    """The file that `tarfile` reads: forward only, with a limit on the bytes that headers make it read."""

    def __init__(self, stream: IO[bytes], target: _Target) -> None:
        self.stream, self.target = stream, target
        self.position, self.last = 0, b""

    def tell(self) -> int:
        return self.position

    def read(self, size: int) -> bytes:
        # A header can claim a gigabyte of extended attributes.
        limit = 2 * self.target.max_bytes + 2048 * self.target.max_members
        if self.position + size > limit:
            raise self.target.refuse(f"unpacks to more than {self.target.max_bytes:,} bytes")
        self.last = self.stream.read(size)
        self.position += len(self.last)
        return self.last

    def seek(self, position: int) -> int:
        while self.position < position and self.read(min(position - self.position, 1 << 20)):
            pass
        return self.position


def _decompressor(start: bytes, archive: Path) -> Callable[..., Any]:
    for magic, opener in ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ\0", lzma.open)):
        if start.startswith(magic):
            return opener
    if start[257:262] == b"ustar":
        return lambda file: file
    # guard: D38 page
    what = "is a web page, not an archive" if start.lstrip()[:1] == b"<" else "is not a tar or zip archive"
    raise DataError(f"{printable(archive)} {what}", "download it again, or give a .tgz, .tar or .zip file")
