"""A labelled set of images: where they are, which classes they have, how the source splits and groups them."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class ImageDataset:
    """A labelled set of photos, found but not yet read.

    Attributes:
        name: What the set is called in run folders and reports.
        root: Folder that `paths` are relative to.
        classes: Class names in natural order; a label is an index into them.
        paths: Relative posix paths, in natural order.
        labels: Class index of each path.
        split: Path to "train", "val" or "test" where the source itself says so, else empty.
        groups: Path to the name of a group whose photos must stay in one part; photos alone are absent.
        notes: What was ignored or is odd, one line each.
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
        """Photos of each class, in the order of `classes`."""
        found = Counter(self.labels)
        return [found[label] for label in range(len(self.classes))]
