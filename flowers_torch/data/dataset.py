"""A labeled set of image files that are found but not yet read."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class ImageDataset:
    """A labeled set of image files.

    Attributes:
        name: Name in run folders and reports.
        root: Folder that `paths` are relative to.
        classes: Class names; a label is an index into them.
        paths: Relative POSIX paths.
        labels: Class index of each path.
        split: Path to "train", "val" or "test" where the source has a split, else empty.
        groups: Path to the name of a group that must stay in one split; other images are absent.
        notes: Remarks on the source, one line each, such as what was ignored.
    """

    name: str
    root: Path
    classes: tuple[str, ...]
    paths: tuple[str, ...]
    labels: tuple[int, ...]
    split: dict[str, str] = field(default_factory=dict)
    groups: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.paths)

    def counts(self) -> list[int]:
        """Number of images of each class, in the order of `classes`."""
        found = Counter(self.labels)
        return [found[label] for label in range(len(self.classes))]
