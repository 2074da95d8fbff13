"""Stratified splits: the number of an image decides its place in its class, so added images move hardly any others."""

import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

from flowers_torch.data.dataset import CLASS_MARK, ImageDataset
from flowers_torch.data.sources.rows import listed
from flowers_torch.data.splits.stratify import divide_classes, split_number
from flowers_torch.errors import DataError, plural, printable
from flowers_torch.shell import command_line

SPLITS = ("train", "val", "test")
IMBALANCE = 3  # ratio of the largest to the smallest class from which a dataset counts as imbalanced
NAMED_CLASSES = 20  # too small ones in an error

Splits = dict[str, list[int]]


def split_dataset(
    dataset: ImageDataset,
    fractions: Sequence[float] = (0.6, 0.2, 0.2),
    seed: int = 0,
    groups: Sequence[Sequence[int]] = (),
) -> Splits:
    """Splits every class by fractions, or as the source does, into ascending indices.

    Every class gets its fractions within one image, as far as groups allow, and an image in every split. An
    added or removed image moves at most one image or group of its class between train and val, and one between
    val and test. A split of the source stays as it is; splits that it lacks are drawn from its training images.

    Args:
        fractions: Of train, val and test; they sum to 1, and test may be 0.
        groups: Images that stay together, such as duplicates, in addition to the groups of the source. A group
            has the number of its image with the shortest path. The split of the source is not changed.

    Raises:
        DataError: invalid fractions, or a class with fewer images than there are splits to draw.
    """
    if len(fractions) != 3 or any(not 0 <= f <= 1 for f in fractions) or abs(sum(fractions) - 1) > 1e-6:
        raise DataError(f"split fractions {tuple(fractions)} do not sum to 1", "give three, such as 0.6 0.2 0.2")
    if min(fractions[:2]) == 0:
        raise DataError(f"split fractions {tuple(fractions)} leave train or val empty", "give both some photos")
    drawn = drawn_fractions(dataset, fractions)
    assigned = [dataset.split.get(path, "train") for path in dataset.paths]
    for split in sorted(set(assigned)):
        present = {label for label, own in zip(dataset.labels, assigned, strict=True) if own == split}
        if absent := [name for label, name in enumerate(dataset.classes) if label not in present]:
            what = f"no photo of {listed(absent)} is left in {split}, which the source gives"
            raise DataError(what, f"add photos, or leave the class out with --exclude {CLASS_MARK}NAME")
    pool = [index for index, split in enumerate(assigned) if split == "train"]
    for index, split in divide_images(dataset, pool, drawn, seed, groups).items():
        assigned[index] = split
    return {split: [index for index, own in enumerate(assigned) if own == split] for split in SPLITS}


def drawn_fractions(dataset: ImageDataset, fractions: Sequence[float]) -> dict[str, float]:
    """The splits that are drawn from the training images of the source, with their fractions of these."""
    given = set(dataset.split.values()) - {"train"}
    drawn = {split: f for split, f in zip(SPLITS, fractions, strict=True) if f and split not in given}
    return {split: fraction / sum(drawn.values()) for split, fraction in drawn.items()}


def divide_images(
    dataset: ImageDataset,
    indices: Sequence[int],
    fractions: Mapping[str, float],
    seed: int,
    groups: Sequence[Sequence[int]] = (),
    known: Collection[str] = (),
) -> dict[int, str]:
    """The split (or fold) of each of some images, stratified by class; `fractions` are by split.

    Every class is in every split, except for known classes, which have images in all of them already.

    Raises:
        DataError: a class without enough images or groups.
    """
    units = group_units(dataset, groups)
    classes: dict[str, Counter[int]] = {}
    for index in indices:
        classes.setdefault(dataset.classes[dataset.labels[index]], Counter())[units[index]] += 1
    new = {name: members for name, members in classes.items() if name not in known}
    _refuse_small(new, list(fractions))
    numbers = {unit: split_number(dataset.paths[unit], seed) for unit in units}
    # An offset that follows from the class would send the only image of every update to the same split.
    offsets = {
        name: numbers[min(units)] if name in known else split_number(name, seed) for name, units in classes.items()
    }
    placed = divide_classes(classes, numbers, list(fractions.values()), offsets, new)
    names = list(fractions)
    for name, members in new.items():
        if absent := set(names) - {names[placed[unit]] for unit in members}:
            what = f"groups of several classes leave no photo of {printable(name)} for {', '.join(sorted(absent))}"
            raise DataError(what, "use another --seed, smaller groups, or --groups none")
    return {index: names[placed[units[index]]] for index in indices}


def _refuse_small(classes: Mapping[str, Mapping[int, int]], splits: Sequence[str]) -> None:
    """Raises a `DataError` that names the classes with fewer units than splits."""
    small = {name: units for name, units in classes.items() if len(units) < len(splits)}
    each, them = ("it", "it") if len(small) == 1 else ("each", "them")
    found, fixes = [], [f"add photos until {each} has at least {len(splits)}"]
    for name, units in list(small.items())[:NAMED_CLASSES]:
        grouped = " that are not in one group" if len(units) < sum(units.values()) else ""
        found.append(f"class {printable(name)} has {plural(units, 'photo')}{grouped}")
    if more := len(small) - len(found):
        found.append(f"{plural(more, 'more class has', 'more classes have')} as few")
        fixes.append("leave such classes out by lines class:NAME in the file of --exclude")
    else:
        out = command_line("--exclude", ",".join(f"{CLASS_MARK}{name}" for name in small))
        fixes.append(f"leave {them} out with {out}")
    if any(len(units) < sum(units.values()) for units in small.values()):
        fixes.append("use --groups none")
    if small:  # guard: D30 few
        raise DataError(f"{', '.join(found)}, too few to be in {', '.join(splits)}", ", or ".join(fixes))


def group_units(dataset: ImageDataset, groups: Sequence[Sequence[int]] = ()) -> list[int]:
    """For each image, the image of its group with the shortest path (of equals the first), or itself.

    A copy mostly has a longer name than its original, so it does not change the number of the group. Overlapping
    groups are joined.
    """
    units = list(range(len(dataset)))
    for group in join_groups(groups, [dataset.groups.get(path, "") for path in dataset.paths]):
        first = min(group, key=lambda index: len(unicodedata.normalize("NFC", dataset.paths[index])))
        for index in group:
            units[index] = first
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


def describe_splits(dataset: ImageDataset, splits: Splits, fractions: Sequence[float] = ()) -> str:
    """One line with the number of images, classes and images of each split, and any imbalance.

    With the fractions that were asked for, also their counts, and the class that is farthest from them.
    """
    counts = dataset.counts()
    sizes = ", ".join(f"{len(indices)} {split}" for split, indices in splits.items())
    text = f"{plural(dataset, 'photo')} of {plural(dataset.classes, 'class')}: {sizes}"
    if fractions:
        text += _describe_request(dataset, splits, fractions)
    if is_imbalanced(dataset):
        most, fewest = max(counts), min(counts)
        common, rare = (printable(dataset.classes[counts.index(n)], 40) for n in (most, fewest))
        text += f"; imbalanced: {most} of {common}, {fewest} of {rare}"
    return text


def _describe_request(dataset: ImageDataset, splits: Splits, fractions: Sequence[float]) -> str:
    """What was asked for, and the largest gap in a class if it is a photo or more."""
    drawn = drawn_fractions(dataset, fractions)
    if len(drawn) < 2:
        return " (as the source splits them)"
    found = {split: Counter(dataset.labels[index] for index in splits[split]) for split in drawn}
    sizes = sum(found.values(), Counter())
    asked = ", ".join(f"{fraction * sizes.total():.1f}".removesuffix(".0") for fraction in drawn.values())
    given = "" if len(drawn) == len(splits) else f" {' and '.join(drawn)}, out of the training photos of the source"
    gaps = [
        (found[split][label] - drawn[split] * size, label, split) for split in drawn for label, size in sizes.items()
    ]
    gap, label, split = max(gaps, key=lambda gap: abs(gap[0]))
    text = f" (asked: {asked}{given}"
    if abs(gap) > 1 - 1e-6:
        place = f"{split} of {printable(dataset.classes[label], 40)}"
        text += f"; {place} is {gap:+.1f} off, because every split needs a photo of each class and groups stay together"
    return f"{text})"
