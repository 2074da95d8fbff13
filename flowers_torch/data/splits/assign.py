"""Stable splits: only its path and the seed decide an image's number, so adding images moves no other image."""

import hashlib
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

from flowers_torch.data.dataset import ImageDataset
from flowers_torch.errors import DataError, printable

SPLITS = ("train", "val", "test")
IMBALANCE = 3  # ratio of the largest to the smallest class from which a dataset counts as imbalanced

Splits = dict[str, list[int]]


def split_number(path: str, seed: int) -> float:
    """A uniform number in [0, 1), a function of the seed and the relative path.

    The path is NFC-normalized, because macOS and Linux encode accents differently.
    """
    name = unicodedata.normalize("NFC", path).encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.sha256(b"%d\0" % seed + name).digest()[:8], "big") / 2**64


def split_dataset(
    dataset: ImageDataset,
    fractions: Sequence[float] = (0.6, 0.2, 0.2),
    seed: int = 0,
    groups: Sequence[Sequence[int]] = (),
) -> Splits:
    """Splits every class by fractions, or as the source does, into ascending indices.

    A split of the source stays as it is; a split that the source lacks is drawn from its training images. If
    a small class has no image in a split, the split gets the image with the smallest number from the split
    that has most of the class. Only in that case can an added image move another.

    Args:
        fractions: Of train, val and test; they sum to 1, and test may be 0.
        groups: Images that stay together, such as duplicates, in addition to the groups of the source. A
            group goes where its first image would go alone. The split of the source is not changed.

    Raises:
        DataError: invalid fractions, or a class with fewer images than there are splits.
    """
    if len(fractions) != 3 or any(not 0 <= f <= 1 for f in fractions) or abs(sum(fractions) - 1) > 1e-6:
        raise DataError(f"split fractions {tuple(fractions)} do not sum to 1", "give three, such as 0.6 0.2 0.2")
    if min(fractions[:2]) == 0:
        raise DataError(f"split fractions {tuple(fractions)} leave train or val empty", "give both some photos")
    given = set(dataset.split.values())
    # The missing splits are drawn from train.
    drawn = {split: f for split, f in zip(SPLITS, fractions, strict=True) if split not in given - {"train"}}
    wanted = [split for split in SPLITS if split in given or drawn.get(split)]
    units = group_units(dataset, groups)
    numbers = [split_number(dataset.paths[unit], seed) for unit in units]
    assigned = [dataset.split.get(path, "train") for path in dataset.paths]
    assigned = [split_of(n, drawn) if own == "train" else own for own, n in zip(assigned, numbers, strict=True)]
    for label, name in enumerate(dataset.classes):
        members = [index for index, own in enumerate(dataset.labels) if own == label]
        _fill_splits(assigned, numbers, units, members, wanted, name)
    return {split: [index for index, own in enumerate(assigned) if own == split] for split in SPLITS}


def group_units(dataset: ImageDataset, groups: Sequence[Sequence[int]] = ()) -> list[int]:
    """For each image, the first image of its group, or itself. Overlapping groups are joined."""
    units = list(range(len(dataset)))
    for group in join_groups(groups, [dataset.groups.get(path, "") for path in dataset.paths]):
        for index in group:
            units[index] = group[0]
    return units


def join_groups(groups: Sequence[Sequence[int]], names: Sequence[str]) -> list[list[int]]:
    """Images that stay in one split: groups of indices, and images with the same name (empty: no group)."""
    named: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        if name:
            named.setdefault(name, []).append(index)
    return group_pairs((group[0], other) for group in (*groups, *named.values()) for other in group[1:])


def group_pairs(pairs: Iterable[tuple[int, int]]) -> list[list[int]]:
    """Joins pairs that share an index into groups, each ascending."""
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
    dataset: ImageDataset, counts: Sequence[int], seed: int = 0, groups: Sequence[Sequence[int]] = ()
) -> Splits:
    """Splits of exact sizes (train, val, test) with every class in proportion, for fixed datasets.

    Classes of one size differ by at most one image within a split. An added image can move others. Groups stay
    together; a group of several classes is divided by class.

    Raises:
        DataError: counts that do not fit, or groups that do not fill a split exactly.
    """
    if len(counts) != 3 or min(counts) < 0 or sum(counts) > len(dataset):
        what = f"cannot draw {list(counts)} photos from the {len(dataset)} of {printable(dataset.name)}"
        raise DataError(what, "give three counts that fit")
    units = group_units(dataset, groups)
    splits: Splits = {split: [] for split in SPLITS}
    for label, quota in enumerate(_class_quotas(dataset, counts, seed)):
        members: dict[int, list[int]] = {}
        for index, own in enumerate(dataset.labels):
            if own == label:
                members.setdefault(units[index], []).append(index)
        waiting = sorted(members, key=lambda unit: split_number(dataset.paths[unit], seed))
        for split, count in zip(SPLITS, quota, strict=True):
            room, left = count, []
            for unit in waiting:
                if len(members[unit]) <= room:
                    splits[split] += members[unit]
                    room -= len(members[unit])
                else:  # too large for the room that is left
                    left.append(unit)
            if room:
                what = f"the groups of {printable(dataset.classes[label])} do not fill a split of {count}"
                raise DataError(what, "use fractions, smaller groups, or --groups none")
            waiting = left
    return {split: sorted(indices) for split, indices in splits.items()}


def split_of(number: float, fractions: Mapping[str, float]) -> str:
    """The split whose interval of [0, 1) holds the number of an image; intervals start with `train`."""
    total = sum(fractions.values())
    edge = 0.0
    for split in SPLITS:
        edge += fractions.get(split, 0.0) / total
        if number < edge:
            return split
    return "train"  # rounding can leave a gap above the last edge


def _fill_splits(
    assigned: list[str], numbers: list[float], units: list[int], members: list[int], wanted: list[str], name: str
) -> None:
    """Moves an image of a class, with its group, into each split that has none; edits `assigned`."""
    count = len({units[i] for i in members})
    if count < len(wanted):  # guard: D30 few
        grouped = " that are not in one group" if count < len(members) else ""
        photos = f"{count} photo{'s' * (count != 1)}{grouped}"
        what = f"class {printable(name)} has {photos}, too few to be in {', '.join(wanted)}"
        fix = f"add photos until it has at least {len(wanted)}" + (", or use --groups none" if grouped else "")
        raise DataError(what, fix)
    for split in wanted:
        by_split = {own: sorted({units[i] for i in members if assigned[i] == own}) for own in wanted}
        if not by_split[split]:
            largest = max(by_split.values(), key=len)
            unit = min(largest, key=lambda i: numbers[i])
            for index, own in enumerate(units):
                if own == unit:
                    assigned[index] = split


def _class_quotas(dataset: ImageDataset, counts: Sequence[int], seed: int) -> list[list[int]]:
    """Images of each class (row) for each split (column): exact column sums of rounded proportions."""
    sizes = dataset.counts()
    counts = [*counts, len(dataset) - sum(counts)]  # the last column is in no split
    quotas = [[count * size // len(dataset) for count in counts] for size in sizes]
    room = [size - sum(quota) for size, quota in zip(sizes, quotas, strict=True)]
    lacking = [count - sum(quota[column] for quota in quotas) for column, count in enumerate(counts)]
    # The column that lacks most chooses first, from the classes with most room. This greedy choice succeeds
    # whenever some choice of at most one more image per class and column does (Gale and Ryser).
    for column in sorted(range(len(counts)), key=lambda column: -lacking[column]):
        numbers = [split_number(f"{column}/{name}", seed) for name in dataset.classes]
        order = sorted(range(len(sizes)), key=lambda label: (-room[label], numbers[label]))
        for label in order[: lacking[column]]:
            quotas[label][column] += 1
            room[label] -= 1
    return [quota[: len(SPLITS)] for quota in quotas]


def is_imbalanced(dataset: ImageDataset) -> bool:
    """Whether the largest class has at least `IMBALANCE` times the images of the smallest."""
    counts = dataset.counts()
    return max(counts) >= IMBALANCE * max(1, min(counts))


def describe_splits(dataset: ImageDataset, splits: Splits) -> str:
    """One line with the number of images, classes and images of each split, and any imbalance."""
    counts = dataset.counts()
    sizes = ", ".join(f"{len(indices)} {split}" for split, indices in splits.items())
    text = f"{len(dataset)} photos of {len(dataset.classes)} classes: {sizes}"
    if is_imbalanced(dataset):
        most, fewest = max(counts), min(counts)
        common, rare = (printable(dataset.classes[counts.index(n)], 40) for n in (most, fewest))
        text += f"; imbalanced: {most} of {common}, {fewest} of {rare}"
    return text
