"""What names the classes of a folder: `--classes`, or the only reading of its folders that makes sense.

Images are tuples of path components. Two readings that sort all images alike count as one.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from flowers_torch.data.sources.rows import counted, listed, normalized, parse_split
from flowers_torch.errors import DataError, plural, printable

Components = tuple[str, ...]
READINGS = {
    "top": "the outer folders",
    "leaf": "the inner folders",
    "path": "the folders with those above them",
    "name": "the file names",
}
UNLABELED = re.compile("unlabell?ed|unclassified|unsorted|unannotated|pred|predict")
PLAIN = "one folder per class"
LAYOUT = "expected FOLDER/<class>/<photo> or FOLDER/train/<class>/<photo> with val and test beside train"


def label_of(image: Components, reading: str) -> str:
    """The class of an image in a reading; empty if it is not in a folder or its file name has no text."""
    *folders, name = image
    if reading == "name":
        return normalized(re.sub(r"[\W_]*(?<!\d)\d+[\W_]*$", "", Path(name).stem))
    if reading == "path":
        return normalized("_".join(folders))
    return normalized(folders[0 if reading == "top" else -1]) if folders else ""


def is_unlabeled(folder: str) -> bool:
    """Whether the name of a folder says that its photos have no class."""
    return any(map(UNLABELED.fullmatch, re.findall(r"[^\W\d_]+", folder.casefold())))


def top_folders(images: Iterable[Components]) -> list[str]:
    """The first folder of the images, each once, in order."""
    return list(dict.fromkeys(image[0] for image in images if len(image) > 1))


def split_folders(names: Iterable[str], root: Path) -> dict[str, str]:
    """Of each folder that holds a split, which one; empty unless one holds train and another one val or test.

    Words beside train, val and test must be the same in all: `flowers_train` and `flowers_test`.
    """
    alike: dict[str, dict[str, list[str]]] = {}
    for name in names:
        split, rest = parse_split(name)
        if split:
            alike.setdefault(rest, {}).setdefault(split, []).append(name)
    for rest in sorted(alike):
        found = alike[rest]
        if held := found.pop("held", []):
            found.setdefault("val" if "test" in found else "test", []).extend(held)
        for split, own in found.items():
            if len(own) > 1 and len(found) > 1:
                what = f"{printable(root)} holds several folders for {split}: {listed(own)}"
                raise DataError(what, "keep one of them, or put their photos into one")
        if "train" in found and len(found) > 1:
            return {own[0]: split for split, own in found.items()}
    return {}


def choose_reading(images: Sequence[Components], root: Path, fewest: int) -> str:
    """The reading of images in folders, if there is only one.

    Raises:
        DataError: several readings, which it lists with the photos of each class.
    """
    tops = top_folders(images)
    direct = {image[0] for image in images if len(image) == 2}
    if doubtful := [name for name in tops if name in direct and parse_split(name) in (("test", ""), ("val", ""))]:
        others = [name for name in tops if name not in doubtful]
        if len(others) >= fewest:
            what = f"{listed(doubtful)} beside {listed(others)} in {printable(root)} is a class, or photos without one"
            fix = f"add --classes top if it is a class; else also --exclude class:{printable(doubtful[0])}"
            raise DataError(what, fix)
    if direct == set(tops):
        return "top"
    readings: dict[str, list[str]] = {}
    for reading in ("top", "leaf", "path"):
        labels = [label_of(image, reading) for image in images]
        if len(set(labels)) >= fewest and all(not _same_sets(labels, other) for other in readings.values()):
            readings[reading] = labels
    if len(readings) > 1:  # guard: D02
        raise _several(images, root, readings)
    return next(iter(readings), "top")


def _same_sets(labels: Sequence[str], others: Sequence[str]) -> bool:
    pairs = set(zip(labels, others, strict=True))
    if len(pairs) == 1:  # the photos of one class: its name decides what they are added to
        return labels[0] == others[0]
    return len(set(labels)) == len(set(others)) == len(pairs)


def _several(images: Sequence[Components], root: Path, readings: dict[str, list[str]]) -> DataError:
    inner: dict[str, set[str]] = {}
    for image in images:
        if len(image) > 2:
            inner.setdefault(image[0], set()).add(image[1])
    common = set.intersection(*inner.values()) if len(inner) > 1 else set()
    why = ""
    if common and all(names == common for names in inner.values()):
        why = f" ({listed(list(inner))} hold the same folders, as splits and folds do; leaf reads them as one set)"
    elif not common:
        why = " (no folder name occurs twice, as in a hierarchy)"
    ways = [f"{_described(labels, reading)} with --classes {reading}" for reading, labels in readings.items()]
    return DataError(f"{printable(root)} can be read in several ways{why}", f"choose {', or '.join(ways)}")


def _described(labels: Sequence[str], reading: str) -> str:
    return f"{plural(set(labels), 'class')} by {READINGS[reading]} ({counted(Counter(labels))})"


def classes_of_names(images: Sequence[Components]) -> list[str]:
    """The class of each image by its file name; empty if the names do not look like classes."""
    labels = [label_of(image, "name") for image in images]
    return labels if 1 < len(set(labels)) <= len(labels) / 2 and "" not in labels else []


def not_in_folders(images: Sequence[Components], root: Path) -> DataError:
    """The error for photos without class folders, with the classes that their names or a table may give."""
    what = f"{printable(root)} holds photos but no class folders"
    fix = "put the photos of each class in a folder"
    if labels := classes_of_names(images):
        return DataError(f"{what}; there are {_described(labels, 'name')}", f"add --classes name, or {fix}")
    # A table of the labels, as Kaggle puts it beside the folder.
    tables = [path for folder in (root, root.parent) for path in sorted(folder.glob("*.[ct]sv"))]
    if tables := [path for path in tables if "submission" not in path.name.lower()][:3]:
        fix = f"name the table of their labels if it is {' or '.join(f'--data {printable(path)}' for path in tables)}"
    return DataError(f"{what}; {LAYOUT}", fix)
