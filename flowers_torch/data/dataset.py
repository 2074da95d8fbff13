"""The images of a dataset with their labels."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path


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

    def __len__(self) -> int:
        return len(self.paths)

    def counts(self) -> list[int]:
        """Number of images of each class, in the order of `classes`."""
        found = Counter(self.labels)
        return [found[label] for label in range(len(self.classes))]
