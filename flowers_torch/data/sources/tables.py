"""Labels in a CSV file: `file,label[,split][,group][,exclude]`."""

import functools
import unicodedata
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from flowers_torch.data.dataset import ImageDataset
from flowers_torch.data.sources.rows import (
    dataset_from_rows,
    listed,
    natural_key,
    normalized,
    parse_split,
    similar_names,
    splits_of_values,
)
from flowers_torch.data.sources.table_columns import Columns, find_columns
from flowers_torch.data.sources.table_files import locate
from flowers_torch.data.sources.table_text import TableRow, read_rows
from flowers_torch.errors import DataError, plural, printable
from flowers_torch.files.system import expand_home

NO_LABEL = {"nan", "<na>", "n/a", "#n/a", "null"}  # as programs write a missing value


def read_table(path: Path, group: str = "", fewest: int = 2) -> ImageDataset:
    """Reads a dataset from a CSV file; its first line names the columns.

    Paths are absolute or relative to the folder of the file; names and ids are looked up in the folders beside it.
    `group` is the column of the groups; empty for one that is named group. `fewest` is the minimum number of classes.

    Raises:
        DataError: with the line or column: missing columns, files that are missing, empty labels, unknown or missing
            splits, a file with two labels, too few classes, or another task than one class for each image.
    """
    path = expand_home(path)
    table = read_rows(path)
    columns = find_columns(table, group)
    rows: list[tuple[int, TableRow]] = []
    excluded: list[tuple[int, TableRow]] = []
    for line, row in table.rows:
        if not row[columns.file].strip():
            raise table.wrong(line, "no file")
        leaves_out = columns.excludes(row, functools.partial(table.wrong, line))
        (excluded if leaves_out else rows).append((line, row))
    if not rows:
        what = f"{printable(path)} leaves out every photo by its column {printable(columns.exclude)}"
        raise DataError(what, "change it")
    files = locate([row[columns.file] for _, row in rows], path)
    splits = splits_of_values({columns.split_of(row) for _, row in rows})
    found: dict[str, tuple[str, str, str]] = {}  # path to class, split, group
    repeated: list[str] = []
    for line, row in rows:
        file, label = files.paths[row[columns.file]], normalized(row[columns.label].strip())
        value = columns.split_of(row)
        split = splits.get(value, "")
        if not label or label.casefold() in NO_LABEL:
            raise table.wrong(line, f"no label for {printable(file)}")
        if (columns.split or columns.flags) and not split:
            raise table.wrong(line, f"split {printable(value)!r} is not valid: expected train, val or test")
        entry = (label, split, row[columns.group].strip() if columns.group else "")
        if file in found and found[file][:2] != entry[:2]:
            raise table.wrong(line, f"{printable(file)} has another label or split on an earlier line")
        if file in found:
            repeated.append(printable(file))
        found[file] = entry
    notes = [*table.notes, *columns.notes, *files.notes]
    if repeated:
        notes.append(f"photos that are listed more than once: {listed(list(Counter(repeated)))}")
    notes += _describe_excluded([row for _, row in excluded], columns, {label for label, _, _ in found.values()})
    unused = columns.unused + _other_tables(path)
    classes = sorted({label for label, _, _ in found.values()}, key=natural_key)
    labeled = [(file, label, split) for file, (label, split, _) in found.items()]
    notes += similar_names(classes)
    dataset = dataset_from_rows(path, files.root, path.stem, classes, labeled, notes, fewest)
    uses = {use: getattr(columns, use) for use in ("file", "label", "split", "group", "exclude")}
    uses |= {split: column for column, split in columns.flags.items()}
    named = [use if use == column else f"{use} ({printable(column)})" for use, column in uses.items() if column]
    of_group = {file: group for file in dataset.paths if (group := found[file][2])}
    dataset = replace(dataset, groups=of_group, group_columns=tuple(columns.groups))
    return replace(dataset, unused=tuple(unused), layout=f"table with {', '.join(named)}")


def _describe_excluded(rows: Sequence[Mapping[str, str]], columns: Columns, classes: Collection[str]) -> list[str]:
    """Notes that name the photos a table leaves out, and classes that lose all of theirs."""
    if not rows:
        return []
    names = listed([row[columns.file].strip() for row in rows])
    notes = [f"{plural(rows, 'photo')} left out by column {printable(columns.exclude)}: {names}"]
    labels = {normalized(row[columns.label].strip()) for row in rows} - {"", *classes}
    return [*notes, f"classes left without photos: {listed(sorted(labels, key=natural_key))}"] if labels else notes


def _other_tables(path: Path) -> list[str]:
    """Tables of other splits beside one, such as test.csv beside train.csv."""
    if not parse_split(path.stem)[0]:
        return []
    others = [other for other in sorted(path.parent.glob(f"*{path.suffix}")) if other.name != path.name]
    named = [printable(other.name) for other in others if parse_split(other.stem)[0]]
    return [f"{name} beside it (its lines may go into this table, with a column split)" for name in named]


def read_groups(path: Path, dataset: ImageDataset) -> dict[str, str]:
    """Path to group from a table `file,group`. A file that is not in the dataset is a `DataError`."""
    table = read_rows(path)
    names = {name.strip().lower(): name for name in table.header}
    if not {"file", "group"} <= names.keys():
        raise DataError(f"{printable(path)} needs the columns file and group", "add them")
    known = set(dataset.paths)
    spelled = {unicodedata.normalize("NFC", name): name for name in dataset.paths}
    groups = {}
    for line, row in table.rows:
        file, group = row[names["file"]].strip(), row[names["group"]].strip()
        if file not in known:
            file = spelled.get(unicodedata.normalize("NFC", file.replace("\\", "/")), file)
        if file not in known:
            raise table.wrong(line, f"{printable(file)} is not a photo of {printable(dataset.name)}")
        if group:
            groups[file] = group
    return groups
