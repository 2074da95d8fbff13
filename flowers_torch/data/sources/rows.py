"""From rows of path, class and split to a dataset; names, order and messages that the sources share."""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from flowers_torch.data.dataset import ImageDataset
from flowers_torch.errors import DataError, printable

# Names of the splits in folders, tables and shards, in any case.
SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "validate", "dev"),
    "test": ("test", "testing"),
}


def dataset_from_rows(
    source: Path,
    root: Path,
    name: str,
    classes: Sequence[str],
    rows: Iterable[tuple[str, str, str]],
    notes: Iterable[str] = (),
) -> ImageDataset:
    """A dataset from rows of (path, class, split); the split is empty where the source has none.

    `source` is the file or folder that errors name; the paths are relative to `root`.

    Raises:
        DataError: the source has a split whose classes differ from those of train.
    """
    rows = sorted(rows, key=lambda row: natural_key(row[0]))
    by_split: dict[str, set[str]] = {}
    for _, label, split in rows:
        by_split.setdefault(split, set()).add(label)
    if by_split.keys() - {""}:
        _check_split_classes(by_split, source)
    index = {label: position for position, label in enumerate(classes)}
    return ImageDataset(
        name,
        root,
        tuple(classes),
        tuple(path for path, _, _ in rows),
        tuple(index[label] for _, label, _ in rows),
        split={path: split for path, _, split in rows if split},
        notes=tuple(notes),
    )


def _check_split_classes(classes: Mapping[str, Collection[str]], source: Path) -> None:
    """Refuses a split with other classes than those of train."""
    if "train" not in classes:
        raise DataError(f"{printable(source)} marks no photo as train", "mark the photos to train on")
    for split, names in classes.items():
        missing = sorted(set(classes["train"]) - set(names))
        extra = sorted(set(names) - set(classes["train"]))
        if missing or extra:  # guard: D28 classes
            kinds = (("missing", missing), ("extra", extra))
            differences = ", ".join(f"{kind} {listed(names)}" for kind, names in kinds if names)
            raise DataError(
                f"classes of {split} in {printable(source)} differ from those of train: {differences}",
                "give every split the same classes, each with a photo",
            )


def split_of_name(name: str) -> str | None:
    """ "train", "val" or "test" for a common name of a split, else None."""
    return next((split for split, names in SPLIT_NAMES.items() if name.strip().lower() in names), None)


def natural_key(name: str) -> tuple[list[tuple[int, str]], str]:
    """Sort key: class2 comes before class10, and case counts only between otherwise equal names."""
    pieces = re.split(r"([0-9]+)", name.casefold())
    return [(int(piece), "") if piece.isdecimal() else (-1, piece) for piece in pieces], name


def listed(names: Sequence[str], limit: int = 5) -> str:
    """The first names in one line, and how many more there are."""
    shown = ", ".join(printable(name, limit=60) for name in names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def counted(counts: Counter[str]) -> str:
    """Names with their counts in one line, the most frequent first."""
    return listed([name if count == 1 else f"{name} ({count})" for name, count in counts.most_common()], limit=10)
