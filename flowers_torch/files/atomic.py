"""Atomic writing: a file is complete or absent, whatever interrupts the process."""

import contextlib
import csv
import errno
import io
import json
import math
import os
import re
import secrets
import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from flowers_torch.errors import ResourceError, printable
from flowers_torch.files.system import fsync_folder, replace

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder that is removed at the end. ResourceError: no folder for temporary files can be written."""
    try:
        made = tempfile.TemporaryDirectory(prefix="flowers-torch-")
    except OSError as error:
        what = f"no folder for temporary files can be written: {error.strerror or error}"
        raise ResourceError(what, "name one with the environment variable TMPDIR") from error
    with made as folder:
        yield Path(folder)


@contextlib.contextmanager
def atomic_write(path: Path, previous: Path | None = None, size: int = 0) -> Iterator[IO[bytes]]:
    """Opens a binary file that replaces `path` on success.

    The order is write, fsync, rename, fsync of the folder, so after a power cut there is the old file or the
    new one. After an error the old file remains.

    Args:
        previous: New path of the old file. A kill between the two renames leaves only this file.
        size: Bytes to write, for the error message; 0 if unknown.

    Raises:
        ResourceError: the folder cannot be written or the disk is full.
    """
    temporary = path.parent / f".{path.name[:32]}.{secrets.token_hex(8)}.tmp"  # a name is at most 255 bytes long
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:  # gets the mode of any new file, and follows no link
            yield file
            file.flush()
            os.fsync(file.fileno())  # guard: C19
        if previous is not None:
            with contextlib.suppress(FileNotFoundError):
                replace(path, previous)
        replace(temporary, path)
        fsync_folder(path.parent)
    except OSError as error:
        what = f"cannot write {printable(path)}{f' ({size:,} bytes)' if size else ''}: {error.strerror or error}"
        raise ResourceError(what, "free space or choose another folder") from error
    finally:
        with contextlib.suppress(OSError):  # the disk may be read-only or absent now
            temporary.unlink(missing_ok=True)  # guard: C17 write


def open_own(path: str, flags: int) -> int:
    """An `opener` for a file that is written in place: regular, without another name, and not through a link."""
    nofollow = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)  # opening a pipe could block
    descriptor = os.open(path, flags | nofollow, 0o666)  # guard: S6
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:  # guard: S6 pipe
        os.close(descriptor)
        raise OSError(errno.EPERM, f"{os.path.basename(path)} is not a regular file of its own")
    return descriptor


def refuse_link(folder: Path) -> Path:
    """The folder. Raises ResourceError if it is a link, which may come from a stranger and leads elsewhere."""
    if folder.is_symlink():  # guard: S11 link
        raise ResourceError(f"{printable(folder)} is a link to another folder", "remove the link")
    return folder


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text atomically."""
    with atomic_write(path) as file:
        file.write(text.encode("utf-8", "surrogateescape"))  # guard: D25 files


def to_json(value: Any, indent: int | None = None) -> str:
    """A value as JSON. NaN and infinities become null."""
    return json.dumps(_without_infinities(value), indent=indent, ensure_ascii=True, allow_nan=False)


def _without_infinities(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_infinities(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_infinities(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, value: Any) -> None:
    """Writes JSON atomically."""
    write_text(path, to_json(value, indent=1) + "\n")


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> None:
    """Writes rows atomically; the header holds `columns`, or the keys of all rows."""
    text = io.StringIO()
    if rows or columns:
        names = columns or list(dict.fromkeys(key for row in rows for key in row))
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: safe_cell(value) for key, value in row.items()} for row in rows)
    write_text(path, text.getvalue())


def safe_cell(value: Any) -> Any:
    """A cell of a CSV file; text that a spreadsheet would run as a formula gets an apostrophe, unless it is a number.

    `reading.plain_cell` removes it again.
    """
    if isinstance(value, str) and re.match("'*[=+@-]", value) and not NUMBER.fullmatch(value):  # guard: D25 formula
        return f"'{value}"
    return value
