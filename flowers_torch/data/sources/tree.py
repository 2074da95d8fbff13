"""The tree of images below a folder. Nothing is decoded or written."""

import os
import stat
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from flowers_torch.data.images import is_image_name
from flowers_torch.data.sources.layouts import Components, top_folders
from flowers_torch.data.sources.rows import natural_key
from flowers_torch.errors import DataError, printable

# Folders and files of file managers, archives and network drives. Names with a leading dot are ignored too.
SYSTEM_FOLDERS = frozenset({"__macosx", "@eadir", "__pycache__", "$recycle.bin", "lost+found"})
SYSTEM_FILES = frozenset({"thumbs.db", "desktop.ini", "ehthumbs.db"})


@dataclass
class ImageTree:
    """The images below a folder, and what else is there; paths are tuples of components in natural order."""

    root: Path
    images: list[Components] = field(default_factory=list)
    folders: list[Components] = field(default_factory=list)
    other: dict[Components, Counter[str]] = field(default_factory=dict)  # files that are not images, by folder
    hidden: Counter[str] = field(default_factory=Counter)

    @property
    def tops(self) -> list[str]:
        """The folders with images, at any depth."""
        return top_folders(self.images)

    @property
    def empty(self) -> list[str]:
        """The folders without an image."""
        filled = set(self.tops)
        return [path[0] for path in self.folders if len(path) == 1 and path[0] not in filled]

    def inner(self, folder: str) -> "ImageTree":
        """The tree of one of the folders."""
        images, folders = (
            [path[1:] for path in paths if path[0] == folder and len(path) > 1] for paths in (self.images, self.folders)
        )
        other = {path[1:]: counts for path, counts in self.other.items() if path[:1] == (folder,)}
        return ImageTree(self.root / folder, images, folders, other)


def scan_tree(root: Path) -> ImageTree:
    """Finds all images below a folder.

    Links are followed, but not to folders above or to folders that are read anyway: such links would put images into
    a wrong class, or have no end.
    """
    tree = ImageTree(root)
    visited = set(root.resolve().parents)
    todo: list[Components] = [()]
    links: list[Components] = []  # these come after all folders that are not links
    while todo or links:
        at = todo.pop() if todo else links.pop(0)
        folder = root.joinpath(*at)
        target = folder.resolve()
        if target in visited:  # guard: D23 circle
            tree.other.setdefault(at[:-1], Counter())["link to another folder"] += 1
            continue
        visited.add(target)
        if at:
            tree.folders.append(at)
        other: Counter[str] = tree.other.get(at, Counter())
        folders, files = list_folder(folder, tree.hidden, other)
        tree.images += ((*at, name) for name in files if is_image_name(name))
        # guard: D06
        other.update(os.path.splitext(name)[1].lower() or "no suffix" for name in files if not is_image_name(name))
        if other:
            tree.other[at] = other
        linked = [name for name in folders if os.path.islink(folder / name)]
        links[:0] = [(*at, name) for name in linked]  # depth first: a circle without end soon has too long a path
        todo += ((*at, name) for name in reversed(folders) if name not in linked)
    return tree


def is_hidden(name: str) -> bool:
    """Whether a file or folder is one of file managers, archives and network drives."""
    return name.startswith(".") or name.lower() in SYSTEM_FOLDERS | SYSTEM_FILES


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
                if is_hidden(entry.name):
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
