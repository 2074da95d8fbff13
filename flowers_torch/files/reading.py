"""Reading files of strangers: regular files only, of bounded size, and every error of a library becomes one of ours."""

import contextlib
import csv
import io
import json
import math
import os
import re
import stat
import tomllib
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from flowers_torch.errors import DataError, FlowersError, ResourceError, one_line, printable

MAX_FILE_BYTES = 256 << 20  # of a file: a split of ten million images
MAX_JSON_BYTES = 32 << 20  # unless the caller knows of larger ones: as values they take ten times that
MAX_TOML_BYTES = 64 << 10  # the parser is slow
MAX_LISTS = 2_000_000  # and tables in a JSON file, each of which takes 56 bytes or more
MAX_DOTS = 100  # between two equal signs of a TOML file; time grows with the square of a key's dots
MAX_TEXT = 4096  # characters of one value
MAX_ITEMS = 20_000_000


@contextlib.contextmanager
def reading(
    path: object, kind: str, error: type[FlowersError] = DataError, fix: str = "use another copy"
) -> Iterator[None]:
    """Turns whatever the bytes of a file make a library raise into one error that names the file.

    Args:
        path: The file, for the message.
        kind: What it should be, such as "a Keras weights file".
        error: Raised in place of the library's error. Errors of this package pass as they are.
        fix: What the user can do.
    """
    try:
        yield
    except FlowersError:
        raise
    except MemoryError as problem:
        what = f"{printable(path)} needs more memory than there is"
        raise ResourceError(what, "free memory, or use a smaller file") from problem
    except OSError as problem:
        if problem.errno is None:  # gzip, Pillow and others report damage in this way
            raise error(f"{printable(path)} is not {kind}: {one_line(problem)}", fix) from problem
        what = f"cannot read {printable(path)}: {problem.strerror or one_line(problem)}"
        raise error(what, "check the path, its access rights and its disk") from problem
    except Exception as problem:
        reason = one_line(problem) or type(problem).__name__
        raise error(f"{printable(path)} is not {kind}: {reason}", fix) from problem


def require_regular(path: str | os.PathLike[str], error: type[FlowersError] = DataError) -> int:
    """The size of a regular file in bytes. A pipe or a device could block its reader forever.

    Raises:
        FlowersError: of the given class: missing, or not a regular file.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError) as problem:  # ValueError: a NUL in the name
        reason = problem.strerror if isinstance(problem, OSError) else problem
        raise error(f"cannot read {printable(path)}: {reason}", "check the path and its access rights") from problem
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
        raise error(f"cannot read {printable(path)}: it is {kind}", "name a file")
    return status.st_size


def read_bytes(
    path: str | os.PathLike[str], kind: str, error: type[FlowersError] = DataError, limit: int = MAX_FILE_BYTES
) -> bytes:
    """The content of a regular file of at most `limit` bytes.

    Raises:
        FlowersError: of the given class: missing, unreadable, not a regular file, or too large.
    """
    with reading(path, kind, error):
        size = require_regular(path, error)
        if size <= limit:
            with open(path, "rb") as file:
                content = file.read(size + 1)
            if len(content) <= limit:
                return content
    raise error(f"{printable(path)} is too large for {kind}: over {limit:,} bytes", "use another copy")


def plausible_bytes(size: int) -> int:
    """What a file of `size` bytes may claim to hold: 100 MB, or four times its size."""
    return max(100 << 20, 4 * size)


def zip_members(path: Path, error: type[FlowersError]) -> dict[str, zipfile.ZipInfo]:
    """The members of a zip archive by name, which do not claim more than is plausible.

    Raises:
        FlowersError: of the given class: they do. Errors of `zipfile` pass as they are.
    """
    size = require_regular(path, error)
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    if sum(member.file_size for member in members) > plausible_bytes(size):  # guard: S4 zip
        raise error(f"{printable(path)} claims to hold much more than its {size:,} bytes", "use another copy")
    return {member.filename: member for member in members}


def read_json(
    path: Path,
    kind: str,
    form: Any,
    error: type[FlowersError] = DataError,
    fix: str = "use another copy",
    limit: int = MAX_JSON_BYTES,
) -> Any:
    """The values of a JSON file of at most `limit` bytes, which have the form that `check` describes."""
    content = read_bytes(path, kind, error, limit)
    with reading(path, kind, error, fix):
        return check(parse_json(content), form)


def parse_json(content: bytes) -> Any:
    """The values of JSON in UTF-8; ValueError for integers beyond 64 bits and for too many lists."""
    if content.count(b"[") + content.count(b"{") > MAX_LISTS:  # guard: S4 json
        raise ValueError(f"it holds more than {MAX_LISTS:,} lists")
    return json.loads(content.decode("utf-8-sig"), parse_int=lambda text: _bounded(int(text)))


def read_toml(path: Path, kind: str, error: type[FlowersError] = DataError, fix: str = "correct it") -> dict[str, Any]:
    """The values of a TOML file."""
    content = read_bytes(path, kind, error, MAX_TOML_BYTES)
    with reading(path, kind, error, fix):
        if max(part.count(b".") for part in content.split(b"=")) > MAX_DOTS:  # guard: S4 toml
            raise ValueError(f"it holds a key of more than {MAX_DOTS} parts")
        values: dict[str, Any] = _bounded(tomllib.loads(content.decode("utf-8-sig")))
        return values


def _bounded(value: Any) -> Any:
    """Returns a value without integers beyond 64 bits, which no number or text of Python's can take."""
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _bounded(inner)
    if isinstance(value, int) and not -(2**63) <= value < 2**63:  # guard: S8 integers
        raise ValueError("it holds an integer beyond 64 bits")
    return value


def read_csv(path: Path, kind: str, columns: Sequence[str] = (), fix: str = "use another copy") -> list[dict[str, str]]:
    """The rows of a CSV file with a header that has these columns; cells beyond the header are left out."""
    content = read_bytes(path, kind)
    with reading(path, kind, DataError, fix):
        text = io.StringIO(content.decode("utf-8-sig", "surrogateescape"), newline="")
        rows = csv.DictReader(text, restval="")
        missing = [column for column in columns if column not in (rows.fieldnames or ())]
        if missing:
            raise ValueError(f"it has no column {missing[0]!r}")
        return [{key: plain_cell(value) for key, value in row.items() if key is not None} for row in rows]


def plain_cell(text: str) -> str:
    """The text of a cell that `atomic.safe_cell` wrote."""
    return text[1:] if re.match("'+[=+@-]", text) else text


def check(value: Any, form: Any, name: str = "the file") -> Any:
    """Returns a value of JSON or TOML that has a form; raises ValueError with the first place that has not.

    Args:
        form: A type; a pair (low, high), the range of an integer or, with floats, of a number; a set of allowed
            values; a compiled pattern that a whole text matches; a list with the form of the items, and with their
            least and largest number if that matters; a dictionary with the form of each key, or with the one key
            `str` and the form of all values. A key that ends in "?" may be absent or null.
        name: Of the value, for the message.
    """
    if isinstance(form, dict):
        if not isinstance(value, dict):
            raise ValueError(f"{name} is not a table of values")
        if str in form:
            return {check(key, str, name): check(item, form[str], f"{name}.{key}") for key, item in value.items()}
        for key, inner in form.items():
            key, optional = key.removesuffix("?"), key.endswith("?")
            if not optional or value.get(key) is not None:
                check(value.get(key), inner, key if name == "the file" else f"{name}.{key}")
        return value
    if isinstance(form, list):
        low, high = form[1:] or (0, MAX_ITEMS)
        if not isinstance(value, list) or not low <= len(value) <= high:
            raise ValueError(f"{name} is not a list of {low:,} to {high:,} items")
        return [check(item, form[0], name) for item in value]
    if not _matches(value, form):
        expected = f"{form[0]} .. {form[1]}" if isinstance(form, tuple) else getattr(form, "__name__", form)
        raise ValueError(f"{name} is {printable(repr(value), 60)}, expected {expected}")
    return value


def _matches(value: Any, form: Any) -> bool:
    if isinstance(form, set | frozenset):
        return isinstance(value, str | int | float) and value in form
    if form is object:
        return True
    if form is str:
        return isinstance(value, str) and len(value) <= MAX_TEXT
    if isinstance(form, re.Pattern):
        return isinstance(value, str) and form.fullmatch(value) is not None
    if form is bool or isinstance(value, bool):
        return form is bool and isinstance(value, bool)
    if form is int:
        return isinstance(value, int) and abs(value) < 2**63
    if form is float:
        return isinstance(value, int | float) and abs(value) < 1e300 and math.isfinite(value)
    low, high = form
    kinds = int if isinstance(low, int) and isinstance(high, int) else (int, float)
    return isinstance(value, kinds) and low <= value <= high
