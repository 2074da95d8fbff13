"""Folders of images: `rose/1.jpg tulip/2.jpg`, or the same with a split: `train/rose/1.jpg val/rose/2.jpg`.

Nothing is decoded or written. Ignored files are counted in the notes of the dataset.
"""

import os
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from torchvision.datasets import ImageFolder

from flowers_torch.data.dataset import ImageDataset
from flowers_torch.data.images import is_image_name, load_image
from flowers_torch.data.sources.rows import SPLIT_NAMES, counted, dataset_from_rows, listed, natural_key, split_of_name
from flowers_torch.errors import DataError, printable

# Folders and files of file managers, archives and network drives. Names with a leading dot are ignored too.
SYSTEM_FOLDERS = frozenset({"__macosx", "@eadir", "__pycache__", "$recycle.bin", "lost+found"})
SYSTEM_FILES = frozenset({"thumbs.db", "desktop.ini", "ehthumbs.db"})
LAYOUT = "expected FOLDER/<class>/<photo> or FOLDER/train/<class>/<photo> with val and test beside train"


class ClassFolders(ImageFolder):
    """torchvision's `ImageFolder` in natural order, with empty classes, without hidden folders and circular links.

    `notes` say what was ignored; `empty` are the classes without an image.
    """

    def __init__(self, root: Path) -> None:
        self.hidden: Counter[str] = Counter()
        self.notes: list[str] = []
        super().__init__(str(root), loader=load_image, is_valid_file=is_image_name, allow_empty=True)
        filled = {self.classes[label] for label in self.targets}
        self.empty = [name for name in self.classes if name not in filled]
        if self.hidden:
            self.notes.insert(0, f"ignored hidden or system files and folders: {counted(self.hidden)}")

    def find_classes(self, directory: str) -> tuple[list[str], dict[str, int]]:
        """Class folders in natural order: class2 before class10."""
        classes, files = list_folder(Path(directory), self.hidden)
        if files:
            self.notes.append(f"ignored {len(files)} files beside the class folders: {listed(files)}")
        return classes, {name: label for label, name in enumerate(classes)}

    def make_dataset(  # a static method in torchvision; this one adds to `notes`
        self, directory: str, class_to_idx: dict[str, int], *_: object, **__: object
    ) -> list[tuple[str, int]]:
        """(path, label) of every file with the suffix of an image, each class in natural order."""
        root = Path(directory)
        # Links to a folder above, or into another class, would label images with the wrong class.
        off_limits = {root.resolve(), *root.resolve().parents, *((root / name).resolve() for name in class_to_idx)}
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
                ignored = f"ignored {other.total()} files that are not photos: {counted(other)}"
                self.notes.append(f"{printable(name)}: {ignored}")
            samples += [(path, label) for path in sorted(paths, key=natural_key)]
        return samples

    def _walk(self, folder: Path, visited: set[Path], other: Counter[str]) -> Iterator[str]:
        """Regular files below a folder; a folder with several links to it is visited once."""
        folders, files = list_folder(folder, self.hidden, other)
        yield from (str(folder / name) for name in files)
        for name in folders:
            target = (folder / name).resolve()
            if target not in visited:  # guard: D23 circle
                visited.add(target)
                yield from self._walk(folder / name, visited, other)


def find_images(root: Path | str, name: str | None = None, fewest: int = 2) -> ImageDataset:
    """Finds the images of a folder of class folders, with or without a split.

    The dataset gets the folder's own name if `name` is None. `fewest` is the minimum number of classes.

    Raises:
        DataError: not a folder, no images, images at the wrong depth (the right root is suggested), empty
            classes (all are listed), splits whose classes differ, or too few classes.
    """
    root = Path(root).expanduser()
    if not root.is_dir():  # guard: D01
        what = "is a file" if root.is_file() else "is not a folder"
        raise DataError(f"{printable(root)} {what}; {LAYOUT}", "name a folder of photos")
    name = name or root.resolve().name
    if splits := find_split_folders(root):
        return _find_split_images(root, name, splits)
    folder = ClassFolders(root)
    _check_classes(folder, root, fewest)
    paths = tuple(Path(path).relative_to(root).as_posix() for path, _ in folder.samples)
    notes = (*folder.notes, *_similar_names(folder.classes))
    return ImageDataset(name, root, tuple(folder.classes), paths, tuple(folder.targets), notes=notes)


def find_split_folders(root: Path) -> dict[str, Path]:
    """The folder of each split; empty unless there is one for train and at least one other."""
    folders, _ = list_folder(root)
    splits: dict[str, Path] = {}
    for split in SPLIT_NAMES:
        matching = [name for name in folders if split_of_name(name) == split]
        if len(matching) > 1:
            what = f"{printable(root)} holds several folders for {split}: {listed(matching)}"
            raise DataError(what, "keep one of them")
        if matching:
            splits[split] = root / matching[0]
    return splits if "train" in splits and len(splits) > 1 else {}


def _find_split_images(root: Path, name: str, splits: dict[str, Path]) -> ImageDataset:
    beside = [folder for folder in list_folder(root)[0] if root / folder not in splits.values()]
    notes = [f"ignored folders beside {', '.join(splits)}: {listed(beside)}"] if beside else []
    found = {split: ClassFolders(folder) for split, folder in splits.items()}
    _check_classes(found["train"], splits["train"])
    for split, folder in found.items():
        if not folder.samples:
            what = f"{printable(splits[split])} holds no photos in class folders"
            raise DataError(what, "give it the classes of train, or remove it")
        notes += [f"{split}: {note}" for note in folder.notes]
    notes += [f"no {split} folder: its photos are drawn from train" for split in SPLIT_NAMES.keys() - splits.keys()]
    rows = [
        (Path(path).relative_to(root).as_posix(), folder.classes[label], split)
        for split, folder in found.items()
        for path, label in folder.samples
    ]
    classes = found["train"].classes
    return dataset_from_rows(root, root, name, classes, rows, [*notes, *_similar_names(classes)])


def _check_classes(folder: ClassFolders, root: Path, fewest: int = 2) -> None:
    if not folder.classes:
        where = "holds photos but no class folders" if _has_images(root) else "holds no photos"
        raise DataError(f"{printable(root)} {where}; {LAYOUT}", "put the photos of each class in a folder")
    deeper = root / folder.classes[0]
    if len(folder.classes) == 1 and _holds_classes(deeper):  # guard: D02
        raise DataError(f"the class folders are one level below {printable(root)}", f"use {printable(deeper)} instead")
    if folder.empty:  # guard: D03
        what = f"{len(folder.empty)} of {len(folder.classes)} class folders of {printable(root)} hold no photo"
        raise DataError(f"{what}: {listed(folder.empty, limit=50)}", "add photos or remove these folders")
    if len(folder.classes) < fewest:  # guard: D30 one
        what = f"{printable(root)} holds one class only: {printable(folder.classes[0])}"
        raise DataError(what, "add a folder for each other class")


def _holds_classes(folder: Path) -> bool:
    """Whether a folder holds class folders or splits, but no images itself."""
    inner = [name for name in list_folder(folder)[0] if _has_images(folder / name)]
    return not _has_images(folder) and (len(inner) >= 2 or bool(find_split_folders(folder)))


def _has_images(folder: Path) -> bool:
    return any(is_image_name(name) for name in list_folder(folder)[1])


def list_folder(
    folder: Path, hidden: Counter[str] | None = None, other: Counter[str] | None = None
) -> tuple[list[str], list[str]]:
    """Names of the folders and of the regular files in a folder, each in natural order; links are followed.

    Hidden and system names are left out and counted in `hidden`; dangling links, pipes and devices in `other`.
    """
    hidden, other = (Counter() if counts is None else counts for counts in (hidden, other))
    folders, files = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                # guard: D04
                if entry.name.startswith(".") or entry.name.lower() in SYSTEM_FOLDERS | SYSTEM_FILES:
                    hidden[entry.name if len(entry.name) < 30 else "other hidden names"] += 1  # guard: D05
                    continue
                try:
                    mode = entry.stat().st_mode
                except OSError:  # nothing at its end, a circle, no right to look, a bad disk
                    other["dangling link" if entry.is_symlink() else "unreadable file"] += 1  # guard: D23 dangling
                    continue
                if stat.S_ISDIR(mode):
                    folders.append(entry.name)
                elif stat.S_ISREG(mode):  # guard: D26 class
                    files.append(entry.name)
                else:
                    other["pipe, socket or device"] += 1
    except OSError as error:  # guard: D24
        where = error.filename or folder
        raise DataError(f"cannot read {printable(where)}: {error.strerror}", "check its access rights") from error
    return sorted(folders, key=natural_key), sorted(files, key=natural_key)


def _similar_names(classes: Iterable[str]) -> list[str]:
    """Notes on class names that differ only in case, spaces or the encoding of accents."""
    groups: dict[str, list[str]] = {}
    for name in classes:
        groups.setdefault(unicodedata.normalize("NFC", name).casefold().strip(), []).append(name)
    return [
        f"classes with nearly the same name stay separate: {listed([ascii(name) for name in names])}"
        for names in groups.values()
        if len(names) > 1  # guard: D29
    ]
