"""The files that a table names: paths anywhere, names in a folder beside the table, ids without a suffix."""

import os
import posixpath
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from flowers_torch.data.images import is_image_name
from flowers_torch.data.sources.rows import listed, parse_split
from flowers_torch.data.sources.tree import list_folder
from flowers_torch.errors import DataError, plural, printable
from flowers_torch.files.system import common_folder

MAX_DEPTH = 3  # of folders below the table in which names are looked up
MAX_FILES = 2_000_000
OUT_OF_THE_SET = re.compile(r"/|[A-Za-z]:/|~")
PATH_FIX = "put them beside the table, or remove their lines"


@dataclass
class FoundFiles:
    """Where the files are."""

    root: Path  # a folder that holds all of them
    paths: dict[str, str] = field(default_factory=dict)  # cell of the table to path, POSIX, relative to `root`
    notes: list[str] = field(default_factory=list)


def locate(cells: Iterable[str], table: Path) -> FoundFiles:
    """Finds the file of each cell.

    Raises:
        DataError: some do not exist, or may be one of several files.
    """
    folder = table.parent
    found: dict[str, str] = {}  # cell to a path that is absolute or relative to the folder
    for cell in dict.fromkeys(cells):
        name = next(filter(lambda name: os.path.isfile(folder / name), _spellings(cell)), "")  # guard: S8 long name
        found[cell] = name
    notes = []
    if not all(found.values()):
        looked_up = _look_up([cell for cell, name in found.items() if not name], table, len(found))
        found |= looked_up
        places = sorted({os.path.dirname(name) or "." for name in looked_up.values()})
        notes.append(f"{plural(looked_up, 'photo is', 'photos are')} looked up by name in {listed(places)}")
    outside = [name for name in found.values() if os.path.isabs(name) or ".." in name.split("/")]
    if not outside:
        return FoundFiles(folder, {cell: posixpath.normpath(name) for cell, name in found.items()}, notes)
    if wrong := [name for name in outside if not is_image_name(name)]:
        what = f"{printable(wrong[0])} of {printable(table)} is not in its folder, and not a photo by its name"
        raise DataError(what, "correct the path")
    files = {cell: os.path.normpath(os.path.join(os.path.abspath(folder), name)) for cell, name in found.items()}
    root = common_folder([os.path.abspath(folder), *map(os.path.dirname, files.values())])
    if root != folder.absolute():
        notes.append(f"photos of {printable(table)} lie outside of its folder, in {printable(root)}")
    return FoundFiles(root, {cell: Path(file).relative_to(root).as_posix() for cell, file in files.items()}, notes)


def _spellings(cell: str) -> Iterator[str]:
    """A path as POSIX, also in the other encoding of accents, and as raw bytes if a table was read as Windows-1252."""
    name = cell.strip().replace("\\", "/")
    if name:
        yield name
        if not name.isascii():
            yield unicodedata.normalize("NFC", name)
            yield unicodedata.normalize("NFD", name)
            yield name.encode("cp1252", "replace").decode("utf-8", "surrogateescape")


def _look_up(cells: list[str], table: Path, total: int) -> dict[str, str]:
    """The files of names and ids, each in exactly one folder below that of the table."""
    index = _index(table.parent)
    split = parse_split(table.stem)[0]
    found: dict[str, str] = {}
    absent: list[str] = []
    for cell in cells:
        matching = index.get(_key(cell.strip().replace("\\", "/")), [])
        if len(matching) > 1:  # train.csv means train_images, not test_images
            own = [path for path in matching if parse_split(path.split("/")[0])[0] == split]
            matching = own if split and len(own) == 1 else matching
        if len(matching) > 1:
            what = f"{printable(cell)} of {printable(table)} may be any of {listed(matching)}"
            raise DataError(what, "write the path with its folder")
        if matching:
            found[cell] = matching[0]
        else:
            absent.append(cell)
    if absent:
        raise _do_not_exist(absent, total, index, table)
    return found


def _index(folder: Path) -> dict[str, list[str]]:
    """Paths below a folder by their last components, with and without the suffix."""
    index: dict[str, list[str]] = {}
    todo, count = [""], 0
    while todo and count < MAX_FILES:
        at = todo.pop()
        folders, files = list_folder(folder / at)
        if at.count("/") < MAX_DEPTH:
            todo += [f"{at}{name}/" for name in folders]
        for name in filter(is_image_name, files):
            count += 1
            pieces = f"{at}{name}".split("/")
            for start in range(len(pieces)):
                tail = "/".join(pieces[start:])
                for key in {_key(tail), _key(os.path.splitext(tail)[0])}:
                    index.setdefault(key, []).append(f"{at}{name}")
    return index


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _do_not_exist(absent: list[str], count: int, index: dict[str, list[str]], table: Path) -> DataError:
    first, do = absent[0], "does" if len(absent) == 1 else "do"
    what = f"{len(absent)} of {plural(count, 'photo')} of {printable(table)} {do} not exist (first: {printable(first)})"
    if re.match(r"https?://", first):
        return DataError(what, "download them, and write the paths of the files")
    pieces = first.strip().replace("\\", "/").split("/")
    if OUT_OF_THE_SET.match("/".join(pieces)):
        for start in range(1, len(pieces)):
            if index.get(_key("/".join(pieces[start:]))):
                prefix = first.strip()[: len("/".join(pieces[:start])) + 1]
                return DataError(what, f"remove {printable(prefix)} from the paths: the rest is beside the table")
    return DataError(what, PATH_FIX)
