"""Folders of images: `rose/1.jpg tulip/2.jpg`, or the same with a split: `train/rose/1.jpg val/rose/2.jpg`.

What is not read is named in the dataset.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from flowers_torch.data.dataset import ImageDataset
from flowers_torch.data.sources.layouts import (
    LAYOUT,
    PLAIN,
    READINGS,
    Components,
    choose_reading,
    classes_of_names,
    is_unlabeled,
    label_of,
    not_in_folders,
    split_folders,
)
from flowers_torch.data.sources.rows import (
    SPLITS,
    Row,
    counted,
    dataset_from_rows,
    listed,
    natural_key,
    normalized,
    similar_names,
)
from flowers_torch.data.sources.tree import ImageTree, scan_tree
from flowers_torch.errors import DataError, plural, printable
from flowers_torch.files.system import expand_home
from flowers_torch.shell import command_line


def find_images(root: Path | str, name: str | None = None, fewest: int = 2, classes: str = "") -> ImageDataset:
    """Finds the images of a folder of class folders, with or without a split.

    The dataset gets the folder's own name if `name` is None. `fewest` is the minimum number of classes. `classes`
    is what names them, a key of `READINGS`; empty if the folders leave no doubt.

    Raises:
        DataError: not a folder, no images, several readings (all are listed with their classes), empty classes, splits
            whose classes differ, or too few classes.
    """
    root = expand_home(root)
    if not root.is_dir():  # guard: D01
        what = "is a file" if root.is_file() else "is not a folder"
        raise DataError(f"{printable(root)} {what}; {LAYOUT}", "name a folder of photos")
    if classes not in ("", *READINGS):
        raise DataError(f"classes {printable(classes)} is not valid", f"use {', '.join(READINGS)}")
    tree = scan_tree(root)
    if not tree.images:
        what = (
            f"{printable(root)} has {plural(tree.empty, 'class folder')} and no photo: {listed(tree.empty, limit=50)}"
        )
        raise DataError(what if tree.empty else f"{printable(root)} holds no photos; {LAYOUT}", "add photos")
    hidden = [f"ignored hidden or system files and folders: {counted(tree.hidden)}"] if tree.hidden else []
    reader = _Reader(root, classes, fewest)
    dataset = reader.read(tree, name or root.resolve().name)
    return replace(dataset, notes=(*hidden, *dataset.notes), unused=tuple(reader.unused))


class _Reader:
    """Reads the classes and splits of a tree; collects what it says about them."""

    def __init__(self, root: Path, classes: str, fewest: int) -> None:
        self.root, self.classes, self.fewest = root, classes, fewest
        self.notes: list[str] = []
        self.unused: list[str] = []

    def read(self, tree: ImageTree, name: str) -> ImageDataset:
        tree = self.open_wrappers(tree)
        where = f" in {printable(tree.root.relative_to(self.root))}" if tree.root != self.root else ""
        if splits := split_folders([*tree.tops, *tree.empty], tree.root):
            return self.read_splits(tree, name, splits, where)
        reading = self.choose(tree)
        images, labels, classes = self.labeled(tree, reading)
        if splits := self.inner_splits(tree) if reading == "top" else {}:
            rows = [("/".join(p), label, splits[p[1]]) for p, label in zip(images, labels, strict=True)]
            dataset = dataset_from_rows(tree.root, tree.root, name, classes, rows, self.notes)
            return replace(dataset, layout=f"{PLAIN}{where}, each with {_named(splits)}")
        position = {label: index for index, label in enumerate(classes)}
        order = sorted(range(len(images)), key=lambda i: (position[labels[i]], natural_key("/".join(images[i]))))
        paths, targets = ["/".join(images[i]) for i in order], [position[labels[i]] for i in order]
        dataset = ImageDataset(name, tree.root, tuple(classes), tuple(paths), tuple(targets), notes=tuple(self.notes))
        return replace(dataset, layout=f"{self.describe(reading)}{where}")

    def read_splits(self, tree: ImageTree, name: str, splits: Mapping[str, str], where: str) -> ImageDataset:
        beside = [folder for folder in tree.tops if folder not in splits]
        self.unused += [f"{printable(folder)} ({plural(tree.inner(folder).images, 'photo')})" for folder in beside]
        self.unused += [f"{printable(folder)} (no photos)" for folder in tree.empty if folder not in splits]
        inner = {split: self.open_wrappers(tree.inner(folder), f"{folder}/") for folder, split in splits.items()}
        reading = self.choose(inner["train"])
        _, known, classes = self.labeled(inner["train"], reading, "train: ")
        rows: list[Row] = []
        for split, own in inner.items():
            prefix = own.root.relative_to(tree.root).as_posix()
            folder = printable(prefix)
            if not own.images:
                raise DataError(f"{printable(own.root)} holds no photos", "give it the classes of train, or remove it")
            # guard: D02 unlabeled
            if split != "train" and _is_unlabeled(own, set(known), reading):
                how = command_line("flowers-torch", "predict", "RUN", own.root)
                self.unused.append(f"{folder} ({plural(own.images, 'photo')} without a class; to classify them: {how})")
                continue
            images = [path for path in own.images if label_of(path, reading)]
            if split != "train":
                self.note_others(own, f"{split}: ")
            rows += [(f"{prefix}/{'/'.join(path)}", label_of(path, reading), split) for path in images]
        given = {split for _, _, split in rows}
        self.notes += [f"no {s} folder with classes: its photos are drawn from train" for s in SPLITS if s not in given]
        if given == {"train"}:
            rows = [(path, label, "") for path, label, _ in rows]
        dataset = dataset_from_rows(tree.root, tree.root, name, classes, rows, self.notes)
        named = _named({folder: split for folder, split in splits.items() if split in given})
        return replace(dataset, layout=f"{self.describe(reading)} in {named}{where}")

    def labeled(self, tree: ImageTree, reading: str, place: str = "") -> tuple[list[Components], list[str], list[str]]:
        """The images of a reading, the class of each, and all classes."""
        images = [path for path in tree.images if label_of(path, reading)]
        labels = [label_of(path, reading) for path in images]
        classes = sorted(set(labels), key=natural_key)
        if empty := tree.empty if reading != "name" else []:  # guard: D03
            of = len(empty) + len(tree.tops)
            hold = "holds" if len(empty) == 1 else "hold"
            what = f"{len(empty)} of {of} class folders of {printable(tree.root)} {hold} no photo"
            raise DataError(f"{what}: {listed(empty, limit=50)}", "add photos or remove these folders")
        if len(classes) < self.fewest:  # guard: D30 one
            what = f"{printable(tree.root)} holds one class only: {listed(classes)}"
            raise DataError(what, "add a folder for each other class")
        self.note_others(tree, place)
        self.note_names(images, reading, place)
        return images, labels, classes

    def describe(self, reading: str) -> str:
        return PLAIN if reading == "top" and not self.classes else f"classes by {READINGS[reading]}"

    def open_wrappers(self, tree: ImageTree, place: str = "") -> ImageTree:
        """The tree below folders that are alone and hold folders, such as X/X/."""
        while True:
            tree = self.without_unlabeled(tree, place)
            tops = tree.tops
            if len(tops) != 1 or split_folders([*tops, *tree.empty], tree.root):
                return tree
            inner = tree.inner(tops[0])
            # Where one class is enough, only X/X/ and a split are certain to be wrappers.
            certain = self.fewest > 1 or split_folders(inner.tops, inner.root) or inner.tops == tops
            if any(len(path) == 1 for path in inner.images) or not certain:
                return tree
            self.unused += [f"{printable(folder)} (no photos)" for folder in tree.empty]
            self.note_others(ImageTree(tree.root, [p for p in tree.images if len(p) == 1]), "")
            tree = inner

    def without_unlabeled(self, tree: ImageTree, place: str) -> ImageTree:
        """The tree without folders whose names say that their photos have no class."""
        absent = [] if self.classes else [name for name in tree.tops if is_unlabeled(name)]
        if len(absent) == len(tree.tops):
            return tree
        for name in absent:
            count = plural(tree.inner(name).images, "photo")
            self.unused.append(f"{place}{printable(name)} ({count} without a class, by its name)")
        images = [path for path in tree.images if path[0] not in absent or len(path) == 1]
        other = {path: counts for path, counts in tree.other.items() if path[:1] not in [(name,) for name in absent]}
        return replace(tree, images=images, folders=[f for f in tree.folders if f[0] not in absent], other=other)

    def choose(self, tree: ImageTree) -> str:
        if self.classes:
            return self.classes
        images = [path for path in tree.images if len(path) > 1]
        if not images:
            raise not_in_folders(tree.images, tree.root)
        if len(tree.tops) == 1 and self.fewest > 1 and classes_of_names(inner := tree.inner(tree.tops[0]).images):
            raise not_in_folders(inner, tree.root / tree.tops[0])
        if self.inner_splits(tree):
            return "top"
        return choose_reading(images, tree.root, self.fewest)

    def inner_splits(self, tree: ImageTree) -> dict[str, str]:
        """The split of each inner folder of rose/train, rose/test, tulip/train, ...; else empty."""
        images = [path for path in tree.images if len(path) > 1]
        inner = {path[1] for path in images if len(path) > 2}
        splits = split_folders(inner, tree.root) if all(len(path) > 2 for path in images) else {}
        return splits if inner == set(splits) else {}

    def note_others(self, tree: ImageTree, place: str) -> None:
        """Names what lies in a folder and is not read."""
        by_name = self.classes == "name"
        loose = ["/".join(p) for p in tree.images if (not label_of(p, "name") if by_name else len(p) == 1)]
        if loose:
            why = "whose names give no class" if by_name else "beside the class folders"
            self.unused.append(f"{place}{plural(loose, 'photo')} {why}: {listed(loose)}")
        by_top: dict[str, Counter[str]] = {}
        for path, counts in tree.other.items():
            by_top.setdefault(path[0] if path else "", Counter()).update(counts)
        for folder, counts in by_top.items():
            where = f"{place}{printable(folder)}: " if folder else place
            count = plural(counts.total(), "file that is not a photo", "files that are not photos")
            self.notes.append(f"{where}ignored {count}: {counted(counts)}")
        deeper = Counter("/".join(path[:2]) for path in tree.images if len(path) > 2)
        if deeper and not self.classes and {path[0] for path in tree.images if len(path) == 2} == set(tree.tops):
            self.notes.append(f"{place}folders in class folders belong to the class: {counted(deeper)}")

    def note_names(self, images: Sequence[Components], reading: str, place: str) -> None:
        """Notes class names that differ only in the encoding of accents, in case or in spaces."""
        if reading != "name":
            at = {"top": slice(0, 1), "leaf": slice(-2, -1), "path": slice(0, -1)}[reading]
            spelled: dict[str, set[str]] = {}
            for path in images:
                spelled.setdefault(label_of(path, reading), set()).add("/".join(path[at]))
            same = [name for name, forms in spelled.items() if len({*map(normalized, forms)}) < len(forms)]
            if same:
                self.notes.append(
                    f"{place}folders whose names differ in the encoding of accents are one class: {listed(same)}"
                )
        self.notes += similar_names(dict.fromkeys(label_of(path, reading) for path in images))


def _is_unlabeled(tree: ImageTree, known: set[str], reading: str) -> bool:
    """Whether the photos of a split are in no class folder, or all in one that is not a class of train."""
    labels = {label_of(path, reading) for path in tree.images}
    return not known & labels and (reading == "name" or len(tree.tops) < 2)


def _named(splits: Mapping[str, str]) -> str:
    """The folders of splits, with the split where the name is another."""
    order = sorted(splits, key=lambda folder: SPLITS.index(splits[folder]))
    return ", ".join(printable(f) if f == splits[f] else f"{printable(f)} ({splits[f]})" for f in order)
