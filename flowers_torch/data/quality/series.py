"""Series of photos, such as all photos of one plant or the frames of a video, and what they do to a test.

If some photos of a series are in training and some in the test, the test measures memory.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np

from flowers_torch.data.dataset import ImageDataset
from flowers_torch.data.images import load_image, open_header, open_regular, quiet
from flowers_torch.data.sources.rows import counted
from flowers_torch.data.splits.assign import join_groups
from flowers_torch.data.splits.stratify import split_number
from flowers_torch.errors import FlowersError, plural, printable

MIN_COVERED = 0.2  # of the images in series; with fewer there is nothing to propose
BURST_SECONDS = 30  # between two photos of a burst
MAX_MEASURED = 1000  # images
THUMBNAIL_SIDE = 16
EXIF_TAG, TIME_TAG, DATE_TAG = 0x8769, 0x9003, 0x0132


@dataclass(frozen=True)
class Series:
    """Groups of images that should stay in one split, and how they were found."""

    kind: str  # such as "file names"
    groups: dict[int, str]  # image to the name of its series

    def describe(self) -> str:
        """The number of images and of series, with the largest ones."""
        sizes = Counter(self.groups.values())
        count = plural(self.groups, "photo is", "photos are")
        return f"{count} in {len(sizes)} series by their {self.kind}: {counted(sizes)}"


@dataclass(frozen=True)
class SeriesScores:
    """Accuracy of the nearest neighbor, where it may be of the same series and where not."""

    ignored: float
    together: float
    images: int

    def describe(self, vectors: str) -> str:
        """One sentence; `vectors` says what was compared."""
        return (
            f"the nearest other photo, by {vectors}, is of the same class for {self.ignored:.0%} of "
            f"{plural(self.images, 'photo')}, for {self.together:.0%} if photos of the same series do not count; a "
            "test that splits series measures the former"
        )


def find_series(dataset: ImageDataset, look_alikes: Sequence[Sequence[int]] = ()) -> Series | None:
    """The series by inner folders, file names, times of recording or look-alikes, whichever covers most images."""
    names = {
        "inner folders": _by_folders(dataset),
        "file names": _by_names(dataset),
        "times": _by_times(dataset),
        "looks": {i: printable(dataset.paths[group[0]]) for group in look_alikes for i in group},
    }
    found = [Series(kind, groups) for kind, groups in names.items() if _is_plausible(dataset, groups)]
    return max(found, key=lambda series: len(series.groups), default=None)


def _is_plausible(dataset: ImageDataset, groups: dict[int, str]) -> bool:
    """Whether enough images are in groups of two or more, several groups in most of their classes."""
    sizes = Counter(groups.values())
    covered = [index for index, name in groups.items() if sizes[name] > 1]
    by_class: dict[int, set[str]] = {}
    for index in covered:
        by_class.setdefault(dataset.labels[index], set()).add(groups[index])
    several = sum(len(names) > 1 for names in by_class.values())
    return len(covered) >= MIN_COVERED * len(dataset) and 2 * several > len(by_class)


def _by_folders(dataset: ImageDataset) -> dict[int, str]:
    """Folders in class folders, such as rose/plant1/3.jpg."""
    found = {}
    for index, path in enumerate(dataset.paths):
        folders = Path(path).parts[:-1]
        name = dataset.classes[dataset.labels[index]]
        at = next((n for n, folder in enumerate(folders) if unicodedata.normalize("NFC", folder) == name), len(folders))
        if at + 1 < len(folders):
            found[index] = "/".join(folders[at:])
    return found


def _by_names(dataset: ImageDataset) -> dict[int, str]:
    """File names up to the last number, such as plant12 of plant12_03.jpg."""
    found = {}
    for index, path in enumerate(dataset.paths):
        name = re.fullmatch(r"(.*?)[\W_]*(?<!\d)\d+[\W_]*", Path(path).stem)
        if name and name[1]:
            found[index] = f"{dataset.classes[dataset.labels[index]]}/{name[1]}"
    return found


def _by_times(dataset: ImageDataset) -> dict[int, str]:
    """Bursts: photos of a class, each at most `BURST_SECONDS` after the one before."""
    times: list[tuple[int, datetime, int]] = []
    for index, path in enumerate(dataset.paths):
        if time := read_time(dataset.root / path):
            times.append((dataset.labels[index], time, index))
    found, burst, before = dict[int, str](), "", (-1, datetime.min)
    for label, time, index in sorted(times):
        if before[0] != label or (time - before[1]).total_seconds() > BURST_SECONDS:
            burst = f"{dataset.classes[label]}/{time:%Y-%m-%d %H:%M:%S}"
        found[index], before = burst, (label, time)
    return found


def read_time(path: Path) -> datetime | None:
    """When a camera took a photo, by its EXIF; None if it does not say."""
    try:
        with open_regular(path) as file:
            image = open_header(file, printable(path))
            with quiet():
                exif = image.getexif()
                text = exif.get_ifd(EXIF_TAG).get(TIME_TAG) or exif.get(DATE_TAG)
        return datetime.strptime(str(text), "%Y:%m:%d %H:%M:%S")
    except Exception:  # malformed EXIF can raise anything
        return None


def measure_series(
    dataset: ImageDataset, groups: dict[int, str], vectors: Callable[[list[int]], np.ndarray]
) -> SeriesScores | None:
    """Compares images with all others, and with those of other series; None if no class has two series.

    `vectors` makes the rows of some images. Of large sets, whole series are drawn until there are `MAX_MEASURED`
    images. Images whose class has no other series are left out.
    """
    names = [groups.get(index, f"\0{index}") for index in range(len(dataset))]
    chosen: list[int] = []
    members: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        members.setdefault(name, []).append(index)
    for name in sorted(members, key=lambda name: split_number(name, 0)):
        if len(chosen) < MAX_MEASURED:
            chosen += members[name]
    rows = vectors(chosen).astype(np.float32)
    used = np.abs(rows).sum(1) > 0  # unreadable images have no features
    rows = rows[used] - rows[used].mean(0)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)
    labels = np.array([dataset.labels[index] for index in chosen])[used]
    numbers = np.unique(np.array([names[index] for index in chosen]), return_inverse=True)[1][used]
    similar = rows @ rows.T
    np.fill_diagonal(similar, -np.inf)
    other = numbers[:, None] != numbers[None]
    counted_images = ((labels[:, None] == labels[None]) & other).any(1)
    if not counted_images.any():
        return None
    ignored = labels[similar.argmax(1)] == labels
    together = labels[np.where(other, similar, -np.inf).argmax(1)] == labels
    return SeriesScores(
        float(ignored[counted_images].mean()), float(together[counted_images].mean()), int(counted_images.sum())
    )


def thumbnail_vectors(dataset: ImageDataset, indices: Sequence[int]) -> np.ndarray:
    """Images at 16 x 16 pixels as rows; zeros for those that cannot be read."""
    rows = np.zeros((len(indices), THUMBNAIL_SIDE**2 * 3), dtype=np.float32)
    for row, index in enumerate(indices):
        try:
            image = load_image(dataset.root / dataset.paths[index], at_least=2 * THUMBNAIL_SIDE)
        except FlowersError:
            continue
        rows[row] = np.asarray(image.resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE)), dtype=np.float32).ravel() + 1
    return rows


def group_rows(
    dataset: ImageDataset, groups: dict[int, str], duplicates: Sequence[Sequence[int]]
) -> list[dict[str, str]]:
    """The rows of a table file,group, in which duplicates are in one group with what they are copies of."""
    names = [groups.get(index, "") for index in range(len(dataset))]
    rows = []
    for number, group in enumerate(join_groups(duplicates, names), start=1):
        name = next((names[index] for index in group if names[index]), f"duplicates {number}")
        rows += [{"file": dataset.paths[index], "group": name} for index in group]
    return rows
