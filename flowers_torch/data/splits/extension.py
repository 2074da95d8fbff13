"""More photos for a set that is split already: which part the new ones go to, so that no test is spoiled.

A photo that is known, and every other picture of the same, belongs into the part that it had: in training it
would give away the test, in the test it would be known by heart. What is left is split as any set is.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from flowers_torch.data.dataset import ImageDataset
from flowers_torch.data.quality.duplicates import near_duplicates
from flowers_torch.data.quality.inspection import Inspection
from flowers_torch.data.splits.assign import SPLITS, group_pairs, split_dataset, split_number, split_of
from flowers_torch.errors import DataError, printable


@dataclasses.dataclass(frozen=True)
class AssignedImage:
    """A photo of the grown set."""

    file: Path
    label: str
    part: str
    name: str  # in its own set
    group: str = ""  # as its source names it; photos of a group stay in one part


def extend_splits(
    old: Sequence[AssignedImage],
    old_inspections: Sequence[Inspection],
    new: ImageDataset,
    new_inspections: Sequence[Inspection],
    shares: Sequence[float],
    seed: int,
) -> list[AssignedImage]:
    """The photos to add, each with its part.

    Those that are known already, by their file or by the same bytes, are not among them.

    Args:
        old: Photos that have their parts.
        old_inspections: Of each.
        new: Photos to add, all readable; where their source splits them, that is kept.
        new_inspections: Of each.
        shares: Of train, val and test, for those that nothing decides.
        seed: Of the split.

    Raises:
        DataError: a photo would be in another part than the same picture, or under another class; or a new
            class is too small for the parts.
    """
    known = {member.file.resolve() for member in old}
    fresh = [i for i, path in enumerate(new.paths) if (new.root / path).resolve() not in known]
    files = [*(member.file for member in old), *(new.root / new.paths[i] for i in fresh)]
    seen = [*old_inspections, *(new_inspections[i] for i in fresh)]
    names = [*(member.group for member in old), *(new.groups.get(new.paths[i], "") for i in fresh)]
    parts = {i: new.split[new.paths[i]] for i in fresh if new.paths[i] in new.split}
    copies: set[int] = set()
    together: dict[int, int] = {}  # new photo -> the first one of its group
    for group in _groups(near_duplicates(_as_set(files), seen), names):
        ours = [old[place] for place in group if place < len(old)]
        theirs = [fresh[place - len(old)] for place in group if place >= len(old)]
        first = ours[0] if ours else AssignedImage(Path(), "", parts.get(theirs[0], ""), new.paths[theirs[0]])
        together |= {i: theirs[0] for i in theirs}
        for i in theirs:
            wanted = parts.get(i, first.part)
            for other in (*ours, first):
                if wanted != other.part:  # guard: D27 update
                    raise _spoiled(new.paths[i], parts.get(i, "new"), other)
            if not ours:
                continue
            parts[i] = first.part
            if any(_same_bytes(new_inspections[i], seen[place]) for place in group if place < len(old)):
                if new.classes[new.labels[i]] not in {member.label for member in ours}:
                    name = printable(new.paths[i])
                    raise DataError(
                        f"{name} is {printable(first.name)}, known as {printable(first.label)}",
                        "decide for one class, and remove it from the other",
                    )
                copies.add(i)
    added = [i for i in fresh if i not in copies]
    undecided = [i for i in added if i not in parts]
    parts |= _draw(new, undecided, together, {member.label for member in old}, shares, seed)
    return [
        AssignedImage(new.root / new.paths[i], new.classes[new.labels[i]], parts[i], new.paths[i])
        for i in added
    ]


def _groups(duplicates: Sequence[Sequence[int]], names: Sequence[str]) -> list[list[int]]:
    """Photos that must stay in one part: twins, and those whose groups have one name."""
    named: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        if name:
            named.setdefault(name, []).append(place)
    return group_pairs((group[0], other) for group in (*duplicates, *named.values()) for other in group[1:])


def _spoiled(name: str, part: str, other: AssignedImage) -> DataError:
    return DataError(
        f"{printable(name)} ({part}) belongs with {printable(other.name)} ({other.part}), being the same "
        "picture or of one group: the test would be spoiled",
        "leave one out, or give both the same part",
    )


def _draw(
    new: ImageDataset,
    undecided: Sequence[int],
    together: Mapping[int, int],
    known: set[str],
    shares: Sequence[float],
    seed: int,
) -> dict[int, str]:
    """Parts by hash; a class that is new gets photos in every part."""
    by_share = dict(zip(SPLITS, shares, strict=True))
    parts = {}
    strangers = []
    for i in undecided:
        if new.classes[new.labels[i]] in known:
            parts[i] = split_of(split_number(new.paths[together.get(i, i)], seed), by_share)
        else:
            strangers.append(i)
    if not strangers:
        return parts
    names = [new.classes[new.labels[i]] for i in strangers]
    classes = tuple(dict.fromkeys(names))
    paths = tuple(new.paths[i] for i in strangers)
    alone = ImageDataset(new.name, new.root, classes, paths, tuple(classes.index(name) for name in names))
    groups: dict[int, list[int]] = {}
    for place, i in enumerate(strangers):
        groups.setdefault(together.get(i, i), []).append(place)
    split = split_dataset(alone, shares, seed, list(groups.values()))
    parts |= {strangers[place]: part for part, places in split.items() for place in places}
    # A group of several classes, drawn apart, goes where its first photo went.
    return {i: parts.get(together.get(i, i), part) for i, part in parts.items()}


def _as_set(files: Sequence[Path]) -> ImageDataset:
    """Files from anywhere as one set, for the search of twins."""
    root = Path(os.path.commonpath([file.absolute().parent for file in files]))
    paths = tuple(str(file.absolute().relative_to(root)) for file in files)
    return ImageDataset("", root, ("",), paths, (0,) * len(paths))


def _same_bytes(one: Inspection, other: Inspection) -> bool:
    return bool(one.sha256) and one.sha256 == other.sha256
