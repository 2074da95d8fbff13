"""Extension of a split by new images, without spoiling the test: duplicates of known images join their split."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from flowers_torch.data.dataset import ImageDataset
from flowers_torch.data.quality.duplicates import near_duplicates
from flowers_torch.data.quality.inspection import Inspection
from flowers_torch.data.splits.assign import SPLITS, divide_images, join_groups
from flowers_torch.errors import DataError, printable


@dataclasses.dataclass(frozen=True)
class AssignedImage:
    """An image with its class and split."""

    file: Path
    label: str
    split: str
    name: str  # path in its own dataset
    group: str = ""  # images of a group stay in one split


# Two sets of images, each with its inspections, and what decides about them.
def extend_splits(
    old: Sequence[AssignedImage],
    old_inspections: Sequence[Inspection],
    new: ImageDataset,
    new_inspections: Sequence[Inspection],
    fractions: Sequence[float],
    seed: int,
    mirrored: bool = True,
) -> list[AssignedImage]:
    """The images to add, each with its split. Known files and exact copies of them are left out.

    The new images must be readable. A split of their source stays as it is. The fractions of train, val and
    test are for images whose split nothing else decides. With `mirrored`, mirror images are duplicates.
    Duplicates in different splits or classes, and a new class that is too small, are a `DataError`.
    """
    known = {image.file.resolve() for image in old}
    fresh = [i for i, path in enumerate(new.paths) if (new.root / path).resolve() not in known]
    files = [file.absolute() for file in (*(image.file for image in old), *(new.root / new.paths[i] for i in fresh))]
    root = Path(os.path.commonpath([file.parent for file in files]))
    everything = ImageDataset("", root, ("",), tuple(str(file.relative_to(root)) for file in files), (0,) * len(files))
    inspections = [*old_inspections, *(new_inspections[i] for i in fresh)]
    names = [*(image.group for image in old), *(new.groups.get(new.paths[i], "") for i in fresh)]
    assigned = {i: new.split[new.paths[i]] for i in fresh if new.paths[i] in new.split}
    copies: set[int] = set()
    groups: list[list[int]] = []  # of new images
    for group in join_groups(near_duplicates(everything, inspections, mirrored).groups, names):
        ours = [old[position] for position in group if position < len(old)]
        theirs = [fresh[position - len(old)] for position in group if position >= len(old)]
        if not theirs:
            continue
        groups.append(theirs)
        first = AssignedImage(Path(), "", assigned.get(theirs[0], ""), new.paths[theirs[0]])
        first = ours[0] if ours else first
        for i in theirs:
            wanted = assigned.get(i, first.split)
            for other in (*ours, first):
                if wanted != other.split:  # guard: D27 update
                    pair = f"{printable(new.paths[i])} ({assigned.get(i, 'new')}) belongs with {printable(other.name)}"
                    why = "they show one picture or are of one group, so different splits would spoil the test"
                    raise DataError(f"{pair} ({other.split}): {why}", "leave one out, or give both the same split")
            if not ours:
                continue
            assigned[i] = first.split
            if new_inspections[i].sha256 in {inspections[p].sha256 for p in group if p < len(old)}:
                if new.classes[new.labels[i]] not in {image.label for image in ours}:
                    what = f"{printable(new.paths[i])} is {printable(first.name)}, known as {printable(first.label)}"
                    raise DataError(what, "decide for one class, and remove it from the other")
                copies.add(i)
    added = [i for i in fresh if i not in copies]
    undecided = [i for i in added if i not in assigned]
    parts = dict(zip(SPLITS, fractions, strict=True))
    assigned |= divide_images(new, undecided, parts, seed, groups, {image.label for image in old})
    return [
        AssignedImage(new.root / new.paths[i], new.classes[new.labels[i]], assigned[i], new.paths[i]) for i in added
    ]
