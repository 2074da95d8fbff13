"""Extension of a split by new images, without spoiling the test: duplicates of known images join their split."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from flowers_torch.data.dataset import ImageDataset
from flowers_torch.data.quality.duplicates import near_duplicates
from flowers_torch.data.quality.inspection import Inspection
from flowers_torch.data.splits.assign import SPLITS, divide_images, join_groups
from flowers_torch.errors import DataError, printable
from flowers_torch.files.system import common_folder


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
) -> tuple[list[AssignedImage], list[str]]:
    """The images to add, each with its split, and the names of those that belong into several splits.

    The latter are left out, as are known files and exact copies of them.

    The new images must be readable. A split of their source stays as it is. The fractions of train, val and
    test are for images whose split nothing else decides. With `mirrored`, mirror images are duplicates.
    Duplicates in different splits or classes, and a new class that is too small, are a `DataError`.
    """
    known = {image.file.resolve() for image in old}
    fresh = [i for i, path in enumerate(new.paths) if (new.root / path).resolve() not in known]
    files = [file.absolute() for file in (*(image.file for image in old), *(new.root / new.paths[i] for i in fresh))]
    root = common_folder([file.parent for file in files])
    everything = ImageDataset(
        "", root, ("",), tuple(file.relative_to(root).as_posix() for file in files), (0,) * len(files)
    )
    inspections = [*old_inspections, *(new_inspections[i] for i in fresh)]
    names = [*(image.group for image in old), *(new.groups.get(new.paths[i], "") for i in fresh)]
    assigned = {i: new.split[new.paths[i]] for i in fresh if new.paths[i] in new.split}
    copies: set[int] = set()
    torn: list[int] = []  # between known images in several splits
    conflicts: list[str] = []
    groups: list[list[int]] = []  # of new images
    for group in join_groups(near_duplicates(everything, inspections, mirrored).groups, names):
        ours = [old[position] for position in group if position < len(old)]
        theirs = [fresh[position - len(old)] for position in group if position >= len(old)]
        if not theirs:
            continue
        groups.append(theirs)
        if len({image.split for image in ours}) > 1:
            torn += theirs
            continue
        decided = next((i for i in theirs if i in assigned), theirs[0])
        first = ours[0] if ours else AssignedImage(Path(), "", assigned.get(decided, ""), new.paths[decided])
        for i in theirs:
            wanted = assigned.get(i, first.split)
            if wanted != first.split:  # guard: D27 update
                conflicts.append(f"{printable(new.paths[i])} ({wanted}) belongs with {printable(first.name)}")
                conflicts[-1] += f" ({first.split})"
            if first.split:
                assigned[i] = first.split
            if not ours:
                continue
            if new_inspections[i].sha256 in {inspections[p].sha256 for p in group if p < len(old)}:
                if new.classes[new.labels[i]] not in {image.label for image in ours}:
                    what = f"{printable(new.paths[i])} is {printable(first.name)}, known as {printable(first.label)}"
                    raise DataError(what, "decide for one class, and remove it from the other")
                copies.add(i)
    if conflicts:
        more = f" and {len(conflicts) - 1} more" if conflicts[1:] else ""
        why = "they show one picture or are of one group, so different splits would spoil the test"
        raise DataError(f"{conflicts[0]}{more}: {why}", "leave these out with --exclude, or give both the same split")
    added = [i for i in fresh if i not in copies and i not in torn]
    undecided = [i for i in added if i not in assigned]
    shares = dict(zip(SPLITS, fractions, strict=True))
    assigned |= divide_images(new, undecided, shares, seed, groups, {image.label for image in old})

    def assign(index: int) -> AssignedImage:
        name, label = new.paths[index], new.classes[new.labels[index]]
        return AssignedImage(new.root / name, label, assigned[index], name, new.groups.get(name, ""))

    return [assign(i) for i in added], [new.paths[i] for i in torn]
