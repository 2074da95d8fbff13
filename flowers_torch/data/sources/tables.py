"""Labels in a CSV file: `file,label[,split][,group]`."""

import csv
import io
import os
from dataclasses import replace
from pathlib import Path, PurePosixPath

from flowers_torch.data.dataset import ImageDataset
from flowers_torch.data.sources.rows import dataset_from_rows, natural_key, split_of_name
from flowers_torch.errors import DataError, printable
from flowers_torch.files.reading import read_bytes

MAX_BYTES = 256 << 20  # rows take several times as much
COLUMNS = {
    "file": "file filename file_name path filepath image image_path photo".split(),
    "label": "label class class_name category target species".split(),
    "split": "split part subset set partition".split(),
    "group": "group group_id".split(),
}


def read_table(path: Path) -> ImageDataset:
    """Reads a dataset from a CSV file of commas, semicolons or tabs; its first line names the columns.

    Paths are relative to the folder of the file.

    Raises:
        DataError: with the line: missing columns, files that are missing or outside of the folder, empty
            labels, unknown or missing splits, a file with two labels, or a single class.
    """
    path = Path(path).expanduser()
    root = path.parent
    rows, header = _read_rows(path)
    columns = _find_columns(header, path)
    found: dict[str, tuple[str, str, str]] = {}  # path to class, split, group
    absent: list[str] = []
    notes: list[str] = []
    for line, row in rows:
        values = {name: row.get(column, "") or "" for name, column in columns.items()}
        file, label = _relative(values["file"], root, path, line), values["label"].strip()
        split = split_of_name(values.get("split", ""))
        if not label:
            raise _wrong(path, line, f"no label for {printable(file)}")
        if "split" in columns and not split:
            raise _wrong(path, line, f"split {printable(values['split'])!r} is not valid: expected train, val or test")
        entry = (label, split, values.get("group", "").strip())
        if file in found and found[file][:2] != entry[:2]:
            raise _wrong(path, line, f"{printable(file)} has another label or split on an earlier line")
        if file in found:
            notes.append(f"{printable(file)} is listed twice")
        elif not os.path.isfile(root / file):  # guard: S8 long name
            absent.append(file)
        found[file] = entry
    if absent:
        what = f"{len(absent)} of {len(found)} photos of {printable(path)} do not exist"
        raise DataError(f"{what} (first: {printable(absent[0])})", "put them beside the table or remove their lines")
    classes = sorted({label for label, _, _ in found.values()}, key=natural_key)
    labeled = [(file, label, split) for file, (label, split, _) in found.items()]
    dataset = dataset_from_rows(path, root, path.stem, classes, labeled, notes)
    return replace(dataset, groups={file: group for file in dataset.paths if (group := found[file][2])})


def read_groups(path: Path, dataset: ImageDataset) -> dict[str, str]:
    """Path to group from a table `file,group`. A file that is not in the dataset is a `DataError`."""
    rows, header = _read_rows(path)
    names = {name.strip().lower(): name for name in header}
    if not {"file", "group"} <= names.keys():
        raise DataError(f"{printable(path)} needs the columns file and group", "add them")
    known = set(dataset.paths)
    groups = {}
    for line, row in rows:
        file, group = (row[names["file"]] or "").strip(), (row[names["group"]] or "").strip()
        if file not in known:
            raise _wrong(path, line, f"{printable(file)} is not a photo of {printable(dataset.name)}")
        if group:
            groups[file] = group
    return groups


def _read_rows(path: Path) -> tuple[list[tuple[int, dict[str, str | None]]], list[str]]:
    """The rows with their line numbers, and the header."""
    text = read_bytes(path, "a table of labels", DataError, MAX_BYTES).decode("utf-8-sig", "surrogateescape")
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


def _find_columns(header: list[str], path: Path) -> dict[str, str]:
    columns = {}
    for name, variants in COLUMNS.items():
        matching = [column for column in header if column.strip().lower() in variants]
        if len(matching) > 1:
            what = f"{printable(path)} has several columns for the {name}: {', '.join(map(printable, matching))}"
            raise DataError(what, f"keep one, named {name}")
        if matching:
            columns[name] = matching[0]
        elif name in ("file", "label"):
            what = f"{printable(path)} has no column for the {name}, only {', '.join(map(printable, header))}"
            raise DataError(what, "start it with file,label or file,label,split")
    return columns


def _relative(file: str, root: Path, path: Path, line: int) -> str:
    """The file's POSIX path relative to the table's folder."""
    name = PurePosixPath(file.strip().replace("\\", "/"))
    if name.is_absolute() and name.is_relative_to(root.resolve().as_posix()):
        name = name.relative_to(root.resolve().as_posix())
    if not name.parts or name.is_absolute() or ".." in name.parts or "\0" in file:
        raise _wrong(path, line, f"{printable(file)!r} is not a path below the table's folder")
    return str(name)


def _wrong(path: Path, line: int, what: str) -> DataError:
    return DataError(f"{printable(path)}, line {line}: {what}", "correct this line")
