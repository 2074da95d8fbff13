"""The images of a dataset with their labels."""

import re
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

CLASS_MARK = "class:"  # before the name of a class that is left out
COLUMN_MARK = "column:"  # before the name of a column of a table


@dataclass(frozen=True)
class ImageDataset:
    """A labeled set of image files that are found but not yet read."""

    name: str  # in run folders and reports
    root: Path
    classes: tuple[str, ...]
    paths: tuple[str, ...]  # POSIX, relative to `root`
    labels: tuple[int, ...]  # indices into `classes`
    split: dict[str, str] = field(default_factory=dict)  # path to "train", "val" or "test", if the source says
    groups: dict[str, str] = field(default_factory=dict)  # path to a name; a group must stay in one split
    notes: tuple[str, ...] = ()  # remarks on the source, one line each, such as what was ignored
    unused: tuple[str, ...] = ()  # folders, files and columns of the source that nothing reads
    group_columns: tuple[str, ...] = ()  # unused columns of a table that may name groups
    layout: str = ""  # how the source was read; empty: in the one way of its kind

    def __len__(self) -> int:
        return len(self.paths)

    def counts(self) -> list[int]:
        """Number of images of each class, in the order of `classes`."""
        found = Counter(self.labels)
        return [found[label] for label in range(len(self.classes))]


def parse_exclude(text: str) -> tuple[str, list[str]]:
    """The exclude list and the classes of "FILE,class:NAME,class:NAME", where each may be missing."""
    path, *classes = re.split(f"(?:^|,){CLASS_MARK}", text)
    return path, [unicodedata.normalize("NFC", name) for name in classes]
