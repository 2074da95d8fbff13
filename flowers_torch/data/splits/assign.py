"""Which photo is for training, which for validation, which for the test.

A photo's part follows from a number between 0 and 1 that its relative path and the seed determine alone. So
adding or removing photos moves no other photo, on any machine, and no two parts can overlap.
"""

import hashlib
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

from flowers_torch.data.dataset import ImageDataset
from flowers_torch.errors import DataError, printable

SPLITS = ("train", "val", "test")
IMBALANCE = 3  # largest class over smallest from which on it is worth a remark

Splits = dict[str, list[int]]


def split_number(path: str, seed: int) -> float:
    """A uniform number in [0, 1) that depends on nothing but the seed and the relative path.

    The path is NFC-normalised first, because macOS and Linux encode the same accents differently.
    """
    name = unicodedata.normalize("NFC", path).encode("utf-8", "surrogateescape")
    digest = hashlib.sha256(b"%d\0" % seed + name).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def split_dataset(
    photos: ImageDataset,
    fractions: Sequence[float] = (0.6, 0.2, 0.2),
    seed: int = 0,
    groups: Sequence[Sequence[int]] = (),
) -> Splits:
    """Splits every class by these fractions, or as the source itself says.

    Where the source is split already, that is kept; a part that it lacks is drawn from its training photos.
    A class so small that a part got none of it gives that part one photo, of the part that has most of
    the class, the one with the smallest number; only there can an added photo move another.

    Args:
        photos: The set.
        fractions: For train, val and test, summing to 1; test may be 0.
        seed: Another seed gives another split.
        groups: Photos that must stay together, such as twins, besides the source's own groups; each group
            goes where the first of its photos would go alone. A split that the source gives is not changed.

    Returns:
        Indices into `photos.paths`, ascending, by part.

    Raises:
        DataError: fractions that are none, or a class with fewer photos than there are parts.
    """
    if len(fractions) != 3 or any(not 0 <= f <= 1 for f in fractions) or abs(sum(fractions) - 1) > 1e-6:
        raise DataError(
            f"split fractions {tuple(fractions)} do not sum to 1", "give three, such as 0.6 0.2 0.2"
        )
    if min(fractions[:2]) == 0:
        raise DataError(
            f"split fractions {tuple(fractions)} leave train or val empty", "give both some photos"
        )
    given = set(photos.split.values())
    drawn = {part: share for part, share in zip(SPLITS, fractions, strict=True) if part not in given}
    drawn["train"] = fractions[0]  # what is drawn comes out of train
    wanted = [part for part in SPLITS if part in given or drawn.get(part)]
    units = group_units(photos, groups)
    numbers = [split_number(photos.paths[unit], seed) for unit in units]
    parts = [photos.split.get(path, "train") for path in photos.paths]
    for index, part in enumerate(parts):
        if part == "train":
            parts[index] = split_of(numbers[index], drawn)
    for label, name in enumerate(photos.classes):
        members = [index for index, own in enumerate(photos.labels) if own == label]
        _fill_parts(parts, numbers, units, members, wanted, name)
    return {part: [index for index, own in enumerate(parts) if own == part] for part in SPLITS}


def group_units(photos: ImageDataset, groups: Sequence[Sequence[int]] = ()) -> list[int]:
    """For each photo the first photo of its group; itself where it is in none. Groups that overlap join."""
    named: dict[str, list[int]] = {}
    for index, path in enumerate(photos.paths):
        if path in photos.groups:
            named.setdefault(photos.groups[path], []).append(index)
    units = list(range(len(photos)))
    pairs = [(group[0], other) for group in (*groups, *named.values()) for other in group[1:]]
    for group in group_pairs(pairs):
        for index in group:
            units[index] = group[0]
    return units


def group_pairs(pairs: Iterable[tuple[int, int]]) -> list[list[int]]:
    """Joins pairs that share a photo into groups, each ascending."""
    parent: dict[int, int] = {}

    def root(i: int) -> int:
        while parent.setdefault(i, i) != i:
            parent[i] = i = parent[parent[i]]
        return i

    for i, j in pairs:
        low, high = sorted((root(i), root(j)))
        parent[high] = low
    groups: dict[int, list[int]] = {}
    for i in sorted(parent):
        groups.setdefault(root(i), []).append(i)
    return list(groups.values())


def exact_split(
    photos: ImageDataset, counts: Sequence[int], seed: int = 0, groups: Sequence[Sequence[int]] = ()
) -> Splits:
    """Splits into parts of exactly these sizes, each class in proportion; classes of one size differ by
    at most one photo within a part. For fixed sets: here an added photo does move others.

    Args:
        photos: The set.
        counts: Photos for train, val and test in all.
        seed: Another seed gives another split.
        groups: Photos that must stay together; those of several classes cannot be kept so here.

    Raises:
        DataError: counts that do not fit, or groups that fill no part exactly.
    """
    if len(counts) != 3 or min(counts) < 0 or sum(counts) > len(photos):
        raise DataError(
            f"cannot draw {list(counts)} photos from the {len(photos)} of {printable(photos.name)}",
            "give three counts that fit",
        )
    units = group_units(photos, groups)
    split: Splits = {part: [] for part in SPLITS}
    for label, quota in enumerate(_class_quotas(photos, counts, seed)):
        members: dict[int, list[int]] = {}
        for index, own in enumerate(photos.labels):
            if own == label:
                members.setdefault(units[index], []).append(index)
        waiting = sorted(members, key=lambda unit: split_number(photos.paths[unit], seed))
        for part, count in zip(SPLITS, quota, strict=True):
            room, left = count, []
            for unit in waiting:
                if len(members[unit]) <= room:
                    split[part] += members[unit]
                    room -= len(members[unit])
                else:  # a pair for the last place waits for the next part; a photo alone takes the place
                    left.append(unit)
            if room:
                raise DataError(
                    f"the groups of {printable(photos.classes[label])} do not fill a part of {count} photos",
                    "use shares, smaller groups, or --groups none",
                )
            waiting = left
    return {part: sorted(indices) for part, indices in split.items()}


def split_of(number: float, shares: Mapping[str, float]) -> str:
    """The part whose interval holds the number of a photo, by the shares of the parts; `train` is first."""
    total = sum(shares.values())
    edge = 0.0
    for part in SPLITS:
        edge += shares.get(part, 0.0) / total
        if number < edge:
            return part
    return "train"  # the edges' rounding error left a hair above the last one


def _fill_parts(
    parts: list[str], numbers: list[float], units: list[int], members: list[int], wanted: list[str], name: str
) -> None:
    """Gives one photo of a class, with its group, to each part that got none; edits `parts`."""
    count = len({units[i] for i in members})
    if count < len(wanted):  # guard: D30 few
        grouped = " that are in no group together" if count < len(members) else ""
        raise DataError(
            f"class {printable(name)} has {count} photo{'s' * (count != 1)}{grouped}, too few to be in "
            f"{', '.join(wanted)}",
            f"add photos until it has at least {len(wanted)}" + (", or use --groups none" if grouped else ""),
        )
    for part in wanted:
        by_part = {own: sorted({units[i] for i in members if parts[i] == own}) for own in wanted}
        if not by_part[part]:
            largest = max(by_part.values(), key=lambda own: len(own))
            unit = min(largest, key=lambda i: numbers[i])
            for index, own in enumerate(units):
                if own == unit:
                    parts[index] = part


def _class_quotas(photos: ImageDataset, counts: Sequence[int], seed: int) -> list[list[int]]:
    """Photos of each class (row) for each part (column): columns sum exactly, entries are rounded quotas."""
    sizes = photos.counts()
    counts = [*counts, len(photos) - sum(counts)]  # the last column: in no part
    quotas = [[count * size // len(photos) for count in counts] for size in sizes]
    room = [size - sum(quota) for size, quota in zip(sizes, quotas, strict=True)]
    lacking = [count - sum(quota[part] for quota in quotas) for part, count in enumerate(counts)]
    # Parts that lack most choose first, and take from the classes with most room left: such a greedy choice
    # succeeds whenever any choice of at most one extra photo a class and part does (Gale and Ryser).
    for part in sorted(range(len(counts)), key=lambda part: -lacking[part]):
        order = sorted(
            range(len(sizes)),
            key=lambda label: (-room[label], split_number(f"{part}/{photos.classes[label]}", seed)),
        )
        for label in order[: lacking[part]]:
            quotas[label][part] += 1
            room[label] -= 1
    return [quota[: len(SPLITS)] for quota in quotas]


def is_imbalanced(photos: ImageDataset) -> bool:
    """Whether the largest class has several times the photos of the smallest."""
    counts = photos.counts()
    return max(counts) >= IMBALANCE * max(1, min(counts))


def describe_splits(photos: ImageDataset, split: Splits) -> str:
    """One line: how many photos of how many classes, how they are split, and how lopsided the set is."""
    counts = photos.counts()
    parts = ", ".join(f"{len(indices)} {part}" for part, indices in split.items())
    text = f"{len(photos)} photos of {len(photos.classes)} classes: {parts}"
    if is_imbalanced(photos):
        text += (
            f"; lopsided: {max(counts)} of {printable(photos.classes[counts.index(max(counts))], 40)}, "
            f"{min(counts)} of {printable(photos.classes[counts.index(min(counts))], 40)}"
        )
    return text
