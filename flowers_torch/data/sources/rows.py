"""From rows of path, class and split to a dataset; names, order and messages that the sources share."""

import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from flowers_torch.data.dataset import ImageDataset
from flowers_torch.errors import DataError, printable

SPLITS = ("train", "val", "test")
Row = tuple[str, str, str]  # path, class, split; no split is an empty string

# Words that name a split in folders, tables and shards, in any case; "held" is test, or val where test exists.
SPLIT_WORDS = {
    "train": "train training trn",
    "val": "val valid validation validate validating dev",
    "test": "test testing tst",
    "held": "eval evaluation evaluate holdout heldout",
}
WORD_SPLITS = {word: split for split, words in SPLIT_WORDS.items() for word in words.split()}
# Words beside them that say nothing: train_images, Test Set, seg_val, 1. train, trainset.
FILLERS = frozenset(
    "set sets image images img imgs photo photos pic pics picture pictures data dataset seg split splits folder "
    "folders dir sample samples subset".split()
)


def dataset_from_rows(
    source: Path,
    root: Path,
    name: str,
    classes: Sequence[str],
    rows: Iterable[Row],
    notes: Iterable[str] = (),
    fewest: int = 2,
) -> ImageDataset:
    """A dataset from rows whose paths are relative to `root`; errors name `source`.

    Raises:
        DataError: fewer than `fewest` classes, or a split whose classes differ from those of train.
    """
    if len(classes) < fewest:
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


def parse_split(name: str) -> tuple[str, str]:
    """The key of `SPLIT_WORDS` that a name holds (empty: none or several), and its other words."""
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    name = re.sub(r"(hold|held)[\W_]*out", "holdout", name, flags=re.IGNORECASE)
    found, rest = [], []
    for word in re.findall(r"[^\W\d_]+", name.casefold()):
        stem = next((word[: -len(end)] for end in sorted(FILLERS, key=len, reverse=True) if word.endswith(end)), "")
        if split := WORD_SPLITS.get(word) or WORD_SPLITS.get(stem):
            found.append(split)
        elif word not in FILLERS:
            rest.append(word)
    return (found[0] if len(found) == 1 else ""), " ".join(rest)


def split_of_name(*names: str) -> str:
    """ "train", "val" or "test" for the first name of a split, or an empty string."""
    found = (split for split, rest in map(parse_split, names) if split and not rest)
    return next(found, "").replace("held", "test")


def splits_of_values(values: Iterable[str]) -> dict[str, str]:
    """Of each value that names a split, which one."""
    found = {
        value: split for value in values if (parsed := parse_split(value)) and (split := parsed[0] * (not parsed[1]))
    }
    held = "val" if "test" in found.values() else "test"
    return {value: held if split == "held" else split for value, split in found.items()}


def normalized(name: str) -> str:
    """A class name with accents in the one encoding (NFC) that all sources use; macOS writes another."""
    return unicodedata.normalize("NFC", name)


def natural_key(name: str) -> tuple[str, str]:
    """Sort key: class2 comes before class10, and case counts only between otherwise equal names.

    Each text ends in a character that sorts before all others, and each number begins with its length. One string
    takes a tenth of the memory of a list of pieces.
    """
    pieces = re.split(r"([0-9]+)", name.casefold())
    for position in range(1, len(pieces), 2):  # the numbers, of any length
        digits = pieces[position].lstrip("0")  # guard: S8 digits
        pieces[position] = chr(min(len(digits), sys.maxunicode)) + digits
        pieces[position - 1] += "\0"
    return "".join(pieces) + "\0", name


def listed(names: Sequence[str], limit: int = 5) -> str:
    """The first names in one line, and how many more there are."""
    shown = ", ".join(printable(name, limit=60) for name in names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def similar_names(classes: Iterable[str]) -> list[str]:
    """Notes on class names that differ only in case or spaces."""
    groups: dict[str, list[str]] = {}
    for name in classes:
        groups.setdefault(" ".join(name.casefold().split()), []).append(name)
    return [
        f"classes with nearly the same name stay separate: {listed([ascii(name) for name in names])}"
        for names in groups.values()
        if len(names) > 1  # guard: D29
    ]


def counted(counts: Counter[str]) -> str:
    """Names with their counts in one line, the most frequent first."""
    return listed([name if count == 1 else f"{name} ({count})" for name, count in counts.most_common()], limit=10)
