"""From rows of path, class and split to a dataset; names, order and messages that the sources share."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from flowers_torch.data.dataset import ImageDataset
from flowers_torch.errors import DataError, printable

Row = tuple[str, str, str]  # path, class, split; no split is an empty string

# Names of the splits in folders, tables and shards, in any case.
SPLIT_NAMES = {"train": "train training", "val": "val valid validation validate dev", "test": "test testing"}


def dataset_from_rows(
    source: Path, root: Path, name: str, classes: Sequence[str], rows: Iterable[Row], notes: Iterable[str] = ()
) -> ImageDataset:
    """A dataset from rows whose paths are relative to `root`; errors name `source`.

    Raises:
        DataError: a single class, or a split whose classes differ from those of train.
    """
    if len(classes) < 2:
        raise DataError(f"{printable(source)} holds one class only", "add photos of another class")
    rows = sorted(rows, key=lambda row: natural_key(row[0]))
    by_split: dict[str, set[str]] = {}
    for _, label, split in rows:
        by_split.setdefault(split, set()).add(label)
    if by_split.keys() - {""}:
        _check_split_classes(by_split, source)
    paths = tuple(path for path, _, _ in rows)
    index = {label: position for position, label in enumerate(classes)}
    labels = tuple(index[label] for _, label, _ in rows)
    splits = {path: split for path, _, split in rows if split}
    return ImageDataset(name, root, tuple(classes), paths, labels, splits, notes=tuple(notes))


def _check_split_classes(classes: Mapping[str, set[str]], source: Path) -> None:
    if "train" not in classes:
        raise DataError(f"{printable(source)} marks no photo as train", "mark the photos to train on")
    for split, names in classes.items():
        kinds = {"missing": classes["train"] - names, "extra": names - classes["train"]}
        if any(kinds.values()):  # guard: D28 classes
            differences = ", ".join(f"{kind} {listed(sorted(names))}" for kind, names in kinds.items() if names)
            what = f"classes of {split} in {printable(source)} differ from those of train: {differences}"
            raise DataError(what, "give every split the same classes, each with a photo")


def split_of_name(*names: str) -> str:
    """ "train", "val" or "test" for the first common name of a split, or an empty string."""
    known = {name: split for split, variants in SPLIT_NAMES.items() for name in variants.split()}
    return next((known[name.strip().lower()] for name in names if name.strip().lower() in known), "")


def natural_key(name: str) -> tuple[list[tuple[int, str]], str]:
    """Sort key: class2 comes before class10, and case counts only between otherwise equal names."""
    pieces = re.split(r"([0-9]+)", name.casefold())
    for position in range(1, len(pieces), 2):  # the numbers, of any length
        pieces[position] = pieces[position].lstrip("0")  # guard: S8 digits
    return [(len(piece) if n % 2 else -1, piece) for n, piece in enumerate(pieces)], name


def listed(names: Sequence[str], limit: int = 5) -> str:
    """The first names in one line, and how many more there are."""
    shown = ", ".join(printable(name, limit=60) for name in names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def counted(counts: Counter[str]) -> str:
    """Names with their counts in one line, the most frequent first."""
    return listed([name if count == 1 else f"{name} ({count})" for name, count in counts.most_common()], limit=10)
