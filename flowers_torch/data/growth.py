"""More photos for a set that is split already: which part the new ones go to, so that no test is spoiled.

A photo that is known, and every other picture of the same, belongs into the part that it had: in training it
would give away the test, in the test it would be known by heart. What is left is split as any set is.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from flowers_torch.data.folder import Photos
from flowers_torch.data.inspection import Inspection
from flowers_torch.data.splits import PARTS, part_of, split_number, split_photos
from flowers_torch.data.twins import near_twins
from flowers_torch.errors import DataError, printable


@dataclasses.dataclass(frozen=True)
class Member:
    """A photo of the grown set."""

    file: Path
    label: str
    part: str
    name: str  # in its own set


def grow(
    old: Sequence[Member],
    old_inspections: Sequence[Inspection],
    new: Photos,
    new_inspections: Sequence[Inspection],
    shares: Sequence[float],
    seed: int,
) -> list[Member]:
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
    groups = near_twins(_as_set(files), seen)
    parts = {i: new.split[new.paths[i]] for i in fresh if new.paths[i] in new.split}
    copies: set[int] = set()
    together: dict[int, int] = {}  # new photo -> the first one of its group
    for group in groups:
        ours = [old[place] for place in group if place < len(old)]
        theirs = [fresh[place - len(old)] for place in group if place >= len(old)]
        if not ours or not theirs:
            together |= {i: theirs[0] for i in theirs}
            continue
        for i in theirs:
            twin = _twin(ours, parts.get(i), new.paths[i])
            parts[i] = twin.part
            if any(_same_bytes(new_inspections[i], seen[place]) for place in group if place < len(old)):
                if new.classes[new.labels[i]] not in {member.label for member in ours}:
                    name = printable(new.paths[i])
                    raise DataError(
                        f"{name} is {printable(twin.name)}, known as {printable(twin.label)}",
                        "decide for one class, and remove it from the other",
                    )
                copies.add(i)
    added = [i for i in fresh if i not in copies]
    undecided = [i for i in added if i not in parts]
    parts |= _draw(new, undecided, together, {member.label for member in old}, shares, seed)
    return [
        Member(new.root / new.paths[i], new.classes[new.labels[i]], parts[i], new.paths[i]) for i in added
    ]


def _twin(ours: Sequence[Member], wanted: str | None, name: str) -> Member:
    """The known picture that decides the part of a new photo.

    Raises:
        DataError: its source puts it into another part, or the known ones are in several.
    """
    for member in ours:
        if wanted not in (None, member.part) or member.part != ours[0].part:
            raise DataError(
                f"{printable(name)} ({wanted or 'new'}) shows the same picture as {printable(member.name)}, "
                f"which the run had in its {member.part} part: the test would be spoiled",
                "leave it out, or give it that part",
            )
    return ours[0]


def _draw(
    new: Photos,
    undecided: Sequence[int],
    together: Mapping[int, int],
    known: set[str],
    shares: Sequence[float],
    seed: int,
) -> dict[int, str]:
    """Parts by hash; a class that is new gets photos in every part."""
    by_share = dict(zip(PARTS, shares, strict=True))
    parts = {}
    strangers = []
    for i in undecided:
        if new.classes[new.labels[i]] in known:
            parts[i] = part_of(split_number(new.paths[together.get(i, i)], seed), by_share)
        else:
            strangers.append(i)
    if not strangers:
        return parts
    names = [new.classes[new.labels[i]] for i in strangers]
    classes = tuple(dict.fromkeys(names))
    paths = tuple(new.paths[i] for i in strangers)
    alone = Photos(new.name, new.root, classes, paths, tuple(classes.index(name) for name in names))
    groups: dict[int, list[int]] = {}
    for place, i in enumerate(strangers):
        groups.setdefault(together.get(i, i), []).append(place)
    split = split_photos(alone, shares, seed, list(groups.values()))
    return parts | {strangers[place]: part for part, places in split.items() for place in places}


def _as_set(files: Sequence[Path]) -> Photos:
    """Files from anywhere as one set, for the search of twins."""
    root = Path(os.path.commonpath([file.absolute().parent for file in files]))
    paths = tuple(str(file.absolute().relative_to(root)) for file in files)
    return Photos("", root, ("",), paths, (0,) * len(paths))


def _same_bytes(one: Inspection, other: Inspection) -> bool:
    return bool(one.sha256) and one.sha256 == other.sha256
