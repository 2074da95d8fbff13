"""Labels in a table: `file,label[,split][,group]`, as CSV beside the photos."""

import csv
import io
from pathlib import Path, PurePosixPath

from flowers_torch.data.dataset import ImageDataset
from flowers_torch.data.sources.folders import check_split_classes, natural_key, split_of_name
from flowers_torch.errors import DataError, printable

MAX_BYTES = 1024**3
COLUMNS = {
    "file": ("file", "filename", "file_name", "path", "filepath", "image", "image_path", "photo"),
    "label": ("label", "class", "class_name", "category", "target", "species"),
    "split": ("split", "part", "subset", "set", "partition"),
    "group": ("group", "group_id"),
}


def read_table(path: Path) -> ImageDataset:
    """Photos as a CSV file lists them.

    The first line names the columns, in any order and case; comma, semicolon and tab are understood. `split`
    takes the usual names of train, val and test; `group` names photos that must stay in one part.

    Args:
        path: The file; photos are relative to its folder.

    Raises:
        DataError: with the line: missing columns, files outside of the folder or absent, empty labels,
            unknown or missing splits, one file under two labels, one class only.
    """
    path = Path(path).expanduser()
    root = path.parent
    rows, header = _rows(path)
    columns = _columns(header, path)
    found: dict[str, tuple[str, str, str]] = {}
    absent: list[str] = []
    notes: list[str] = []
    for line, row in rows:
        values = {name: row.get(column, "") or "" for name, column in columns.items()}
        file, label = _relative(values["file"], root, path, line), values["label"].strip()
        part = split_of_name(values.get("split", ""))
        if not label:
            raise _wrong(path, line, f"no label for {printable(file)}")
        if "split" in columns and part is None:
            raise _wrong(path, line, f"split {printable(values['split'])!r} is none of train, val, test")
        entry = (label, part or "", values.get("group", "").strip())
        if file in found and found[file][:2] != entry[:2]:
            raise _wrong(path, line, f"{printable(file)} was listed before with another label or split")
        if file in found:
            notes.append(f"{printable(file)} is listed twice")
        elif not (root / file).is_file():
            absent.append(file)
        found[file] = entry
    if absent:
        raise DataError(
            f"{len(absent)} of {len(found)} photos of {printable(path)} are not there "
            f"(first: {printable(absent[0])})",
            "put them beside the table or remove their lines",
        )
    classes = sorted({label for label, _, _ in found.values()}, key=natural_key)
    if len(classes) < 2:
        raise DataError(f"{printable(path)} lists {len(classes)} class only", "list photos of each class")
    if "split" in columns:
        by_part: dict[str, set[str]] = {}
        for label, part, _ in found.values():
            by_part.setdefault(part, set()).add(label)
        check_split_classes(by_part, path)
    paths = sorted(found, key=natural_key)
    index = {name: label for label, name in enumerate(classes)}
    return ImageDataset(
        path.stem,
        root,
        tuple(classes),
        tuple(paths),
        tuple(index[found[file][0]] for file in paths),
        split={file: found[file][1] for file in paths if found[file][1]},
        groups={file: found[file][2] for file in paths if found[file][2]},
        notes=tuple(notes),
    )


def read_groups(path: Path, photos: ImageDataset) -> dict[str, str]:
    """Group of each photo from a table `file,group`; photos that it does not list stay alone.

    Raises:
        DataError: a missing column, or a file that is none of the photos.
    """
    rows, header = _rows(path)
    names = {name.strip().lower(): name for name in header}
    if not {"file", "group"} <= names.keys():
        raise DataError(f"{printable(path)} needs the columns file and group", "add them")
    known = set(photos.paths)
    groups = {}
    for line, row in rows:
        file, group = (row[names["file"]] or "").strip(), (row[names["group"]] or "").strip()
        if file not in known:
            raise _wrong(path, line, f"{printable(file)} is none of the photos of {printable(photos.name)}")
        if group:
            groups[file] = group
    return groups


def _rows(path: Path) -> tuple[list[tuple[int, dict[str, str | None]]], list[str]]:
    """Lines after the first with their numbers, and the names in the first."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{printable(path)} is too large for a table of labels", "split it")
        text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise DataError(f"cannot read {printable(path)}: {error.strerror}", "check the path") from error
    first = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=first.count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, restkey="", strict=True)
    try:
        rows = [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise _wrong(path, reader.line_num, str(error)) from error
    if not rows:
        raise DataError(f"{printable(path)} lists no photos", "add lines of file,label")
    return rows, list(reader.fieldnames or ())


def _columns(header: list[str], path: Path) -> dict[str, str]:
    """Which column holds what."""
    columns = {}
    for name, variants in COLUMNS.items():
        matching = [column for column in header if column.strip().lower() in variants]
        if len(matching) > 1:
            what = (
                f"{printable(path)} has several columns for the {name}: {', '.join(map(printable, matching))}"
            )
            raise DataError(what, f"keep one, named {name}")
        if matching:
            columns[name] = matching[0]
        elif name in ("file", "label"):
            what = f"{printable(path)} has no column for the {name}, only {', '.join(map(printable, header))}"
            raise DataError(what, "let its first line be file,label or file,label,split")
    return columns


def _relative(file: str, root: Path, path: Path, line: int) -> str:
    """The file's posix path relative to the table's folder."""
    name = PurePosixPath(file.strip().replace("\\", "/"))
    if name.is_absolute() and name.is_relative_to(root.resolve().as_posix()):
        name = name.relative_to(root.resolve().as_posix())
    if not name.parts or name.is_absolute() or ".." in name.parts or "\0" in file:
        raise _wrong(path, line, f"{printable(file)!r} is no file below the table's folder")
    return str(name)


def _wrong(path: Path, line: int, what: str) -> DataError:
    return DataError(f"{printable(path)}, line {line}: {what}", "correct this line")
