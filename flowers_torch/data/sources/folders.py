"""Folders of photos: what the classes are, which files belong to them, and what was left out.

    rose/1.jpg  tulip/2.jpg                       one folder a class
    train/rose/1.jpg  val/rose/2.jpg  test/...    the same, already split

Nothing is decoded here and nothing is written. What is ignored is counted and said, never silently dropped.
"""

import os
import re
import stat
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

from torchvision.datasets import ImageFolder

from flowers_torch.data.dataset import ImageDataset
from flowers_torch.data.images import is_image_name, load_image
from flowers_torch.errors import DataError, printable

# What a person may call the three parts of a set that is split already, in any case.
SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "validate", "dev"),
    "test": ("test", "testing"),
}
# Folders that file managers, archives and network drives leave behind; names with a leading dot join them.
SYSTEM_FOLDERS = frozenset({"__macosx", "@eadir", "__pycache__", "$recycle.bin", "lost+found"})
SYSTEM_FILES = frozenset({"thumbs.db", "desktop.ini", "ehthumbs.db"})
LAYOUT = "expected FOLDER/<class>/<photo> or FOLDER/train/<class>/<photo> with val and test beside train"


class ClassFolders(ImageFolder):
    """torchvision's `ImageFolder` with this package's loader, natural class order and a walk that ends.

    It adds `notes` (what was ignored) and `empty` (classes without a photo), where torchvision would raise
    on the first empty class, take hidden folders for classes and follow a circle of links for ever.
    """

    def __init__(self, root: Path) -> None:
        self.litter: Counter[str] = Counter()
        self.notes: list[str] = []
        super().__init__(str(root), loader=load_image, is_valid_file=is_image_name, allow_empty=True)
        filled = {self.classes[label] for label in self.targets}
        self.empty = [name for name in self.classes if name not in filled]
        if self.litter:
            self.notes.insert(0, f"ignored hidden or system files and folders: {counted(self.litter)}")

    def find_classes(self, directory: str) -> tuple[list[str], dict[str, int]]:
        """Class folders in natural order: class2 before class10."""
        folders, files = list_folder(Path(directory), self.litter)
        if files:
            self.notes.append(f"ignored {len(files)} files beside the class folders: {_some(files)}")
        classes = sorted(folders, key=natural_key)
        return classes, {name: label for label, name in enumerate(classes)}

    def make_dataset(  # torchvision's is a static method; here what it ignores is kept in `notes`
        self, directory: str, class_to_idx: dict[str, int], *_: object, **__: object
    ) -> list[tuple[str, int]]:
        """(path, label) of every file with a photo's suffix, each class in natural order."""
        root = Path(directory)
        # Links back to here or further up, or into another class, would label photos with the wrong class.
        off_limits = {_identity(folder) for folder in (root.resolve(), *root.resolve().parents)}
        off_limits |= {_identity(root / name) for name in class_to_idx}
        samples = []
        for name, label in class_to_idx.items():
            other: Counter[str] = Counter()
            paths = []
            for path in self._walk(root / name, set(off_limits), other):
                if is_image_name(path):
                    paths.append(path)
                else:
                    other[os.path.splitext(path)[1].lower() or "no suffix"] += 1  # guard: D06
            if other:
                self.notes.append(
                    f"{printable(name)}: ignored {other.total()} files that are no photos: {counted(other)}"
                )
            samples += [(path, label) for path in sorted(paths, key=natural_key)]
        return samples

    def _walk(self, folder: Path, seen: set[tuple[int, int]], other: Counter[str]) -> Iterator[str]:
        """Regular files below a folder. A folder that two links lead to is walked once."""
        folders, files = list_folder(folder, self.litter, other)
        yield from (str(folder / name) for name in files)
        for name in folders:
            identity = _identity(folder / name)
            if identity not in seen:  # guard: D23 circle
                seen.add(identity)
                yield from self._walk(folder / name, seen, other)


def find_images(root: Path | str, name: str | None = None, fewest: int = 2) -> ImageDataset:
    """Finds the photos of a folder of class folders, split already or not.

    Args:
        root: The folder.
        name: What to call the set; the folder's own name if None.
        fewest: Classes that there must be.

    Raises:
        DataError: no such folder, nothing in it, photos at the wrong depth (the right root is suggested),
            classes without a photo (all of them named), parts whose classes differ, too few classes.
    """
    root = Path(root).expanduser()
    if not root.is_dir():  # guard: D01
        what = "is a file" if root.is_file() else "is no folder"
        raise DataError(f"{printable(root)} {what}; {LAYOUT}", "name a folder of photos")
    name = name or root.resolve().name
    parts = find_split_folders(root)
    if parts:
        return _find_split_photos(root, name, parts)
    folder = ClassFolders(root)
    _check_classes(folder, root, fewest)
    return ImageDataset(
        name,
        root,
        classes=tuple(folder.classes),
        paths=tuple(Path(path).relative_to(root).as_posix() for path, _ in folder.samples),
        labels=tuple(folder.targets),
        notes=(*folder.notes, *_similar_names(folder.classes)),
    )


def find_split_folders(root: Path) -> dict[str, Path]:
    """Folders of a split that is already there, by part; empty unless train and one other are present."""
    folders, _ = list_folder(root)
    parts: dict[str, Path] = {}
    for part in SPLIT_NAMES:
        matching = [name for name in folders if split_of_name(name) == part]
        if len(matching) > 1:
            raise DataError(
                f"{printable(root)} holds several folders for {part}: {_some(matching)}", "keep one of them"
            )
        if matching:
            parts[part] = root / matching[0]
    return parts if "train" in parts and len(parts) > 1 else {}


def split_of_name(name: str) -> str | None:
    """ "train", "val" or "test" for any of the names that people give these parts, else None."""
    return next((part for part, names in SPLIT_NAMES.items() if name.strip().lower() in names), None)


def _find_split_photos(root: Path, name: str, parts: dict[str, Path]) -> ImageDataset:
    beside = [folder for folder in list_folder(root)[0] if root / folder not in parts.values()]
    notes = [f"ignored folders beside {', '.join(parts)}: {_some(beside)}"] if beside else []
    found = {part: ClassFolders(folder) for part, folder in parts.items()}
    _check_classes(found["train"], parts["train"])
    classes = found["train"].classes
    filled = {part: [n for n in folder.classes if n not in folder.empty] for part, folder in found.items()}
    check_split_classes(filled, root)
    for part, folder in found.items():
        notes += [f"{part}: {note}" for note in folder.notes]
    for part in SPLIT_NAMES.keys() - parts.keys():
        notes.append(f"no {part} folder: its photos are drawn from train")
    rows = [
        (Path(path).relative_to(root).as_posix(), classes.index(folder.classes[label]), part)
        for part, folder in found.items()
        for path, label in folder.samples
    ]
    rows.sort(key=lambda row: natural_key(row[0]))
    return ImageDataset(
        name,
        root,
        classes=tuple(classes),
        paths=tuple(path for path, _, _ in rows),
        labels=tuple(label for _, label, _ in rows),
        split={path: part for path, _, part in rows},
        notes=(*notes, *_similar_names(classes)),
    )


def check_split_classes(classes: Mapping[str, Collection[str]], where: Path) -> None:
    """Every part of a split that is there already must hold the classes of train, no more and no fewer.

    Args:
        classes: Names of the classes that have a photo, by part.
        where: The set, for the error.

    Raises:
        DataError: no train, or classes that are missing or extra, with their names.
    """
    if "train" not in classes:
        raise DataError(f"{printable(where)} marks no photo as train", "mark those to train on")
    for part, names in classes.items():
        missing = [name for name in classes["train"] if name not in names]
        extra = [name for name in names if name not in classes["train"]]
        if missing or extra:  # guard: D28 classes
            kinds = (("missing", missing), ("extra", extra))
            differences = ", ".join(f"{kind} {_some(sorted(names))}" for kind, names in kinds if names)
            raise DataError(
                f"classes of {part} in {printable(where)} differ from those of train: {differences}",
                "give every part the same classes, each with a photo",
            )


def _check_classes(folder: ClassFolders, root: Path, fewest: int = 2) -> None:
    if not folder.classes:
        where = "holds photos but no class folders" if _has_photos(root) else "holds no photos"
        raise DataError(f"{printable(root)} {where}; {LAYOUT}", "put the photos of each class in a folder")
    deeper = _suggest_root(root, folder.classes)
    if deeper is not None:  # guard: D02
        raise DataError(
            f"the class folders are one level below {printable(root)}", f"use {printable(deeper)} instead"
        )
    if folder.empty:  # guard: D03
        raise DataError(
            f"{len(folder.empty)} of {len(folder.classes)} class folders of {printable(root)} hold no photo: "
            f"{_some(folder.empty, most=50)}",
            "add photos or remove these folders",
        )
    if len(folder.classes) < fewest:  # guard: D30 one
        raise DataError(
            f"{printable(root)} holds one class only: {printable(folder.classes[0])}",
            "add a folder for each other class",
        )


def _suggest_root(root: Path, classes: list[str]) -> Path | None:
    """The only folder below `root` when it holds the class folders (or train, val, test) itself."""
    if len(classes) != 1 or _has_photos(root / classes[0]):
        return None
    deeper = root / classes[0]
    inner = [name for name in list_folder(deeper)[0] if _has_photos(deeper / name)]
    return deeper if len(inner) >= 2 or find_split_folders(deeper) else None


def _has_photos(folder: Path) -> bool:
    return any(is_image_name(name) for name in list_folder(folder)[1])


def list_folder(
    folder: Path, litter: Counter[str] | None = None, other: Counter[str] | None = None
) -> tuple[list[str], list[str]]:
    """Names of the folders and of the regular files in a folder, each in natural order.

    Args:
        folder: Where to look; links are followed.
        litter: Counts the hidden and system names that are left out.
        other: Counts dangling links, pipes and devices, which are left out without being opened.
    """
    litter = Counter() if litter is None else litter
    other = Counter() if other is None else other
    folders, files = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                # guard: D04
                if entry.name.startswith(".") or entry.name.lower() in SYSTEM_FOLDERS | SYSTEM_FILES:
                    litter[entry.name if len(entry.name) < 30 else "other hidden names"] += 1  # guard: D05
                    continue
                try:
                    mode = entry.stat().st_mode
                except FileNotFoundError:
                    other["dangling link"] += 1  # guard: D23 dangling
                    continue
                if stat.S_ISDIR(mode):
                    folders.append(entry.name)
                elif stat.S_ISREG(mode):  # guard: D26 class
                    files.append(entry.name)
                else:
                    other["pipe, socket or device"] += 1
    except OSError as error:  # guard: D24
        where = error.filename or folder
        raise DataError(
            f"cannot read {printable(where)}: {error.strerror}", "check its access rights"
        ) from error
    return sorted(folders, key=natural_key), sorted(files, key=natural_key)


def natural_key(name: str) -> tuple[list[tuple[int, str]], str]:
    """Sorts class2 before class10 and ignores case; equal but for case, the exact name decides."""
    pieces = re.split(r"([0-9]+)", name.casefold())
    return [(int(piece), "") if piece.isdecimal() else (-1, piece) for piece in pieces], name


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _similar_names(classes: Iterable[str]) -> list[str]:
    """Class names that a person would take for one: Rose and rose, or the same accents encoded twice."""
    groups: dict[str, list[str]] = {}
    for name in classes:
        groups.setdefault(unicodedata.normalize("NFC", name).casefold().strip(), []).append(name)
    return [
        f"classes with nearly the same name are kept apart: {_some([ascii(name) for name in names])}"
        for names in groups.values()
        if len(names) > 1  # guard: D29
    ]


def _some(names: list[str], most: int = 5) -> str:
    shown = ", ".join(printable(name, limit=60) for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def counted(counts: Counter[str]) -> str:
    """What was counted in one line, the most frequent first."""
    return _some(
        [name if count == 1 else f"{name} ({count})" for name, count in counts.most_common()], most=10
    )
