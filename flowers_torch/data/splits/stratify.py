"""Division of the units of each class, single images or groups, into splits of given fractions."""

import hashlib
import random
import unicodedata
from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from itertools import accumulate, pairwise

RESTARTS = 30  # of the search for a place for classes that share units, as long as a split lacks one


def split_number(name: str, seed: int) -> float:
    """A uniform number in [0, 1), a function of the seed and a name, such as a relative path.

    The name is NFC-normalized, because macOS and Linux encode accents differently.
    """
    data = unicodedata.normalize("NFC", name).encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.sha256(b"%d\0" % seed + data).digest()[:8], "big") / 2**64


def divide_classes(
    classes: Mapping[str, Mapping[int, int]],
    numbers: Mapping[int, float],
    fractions: Sequence[float],
    offsets: Mapping[str, float],
    filled: Collection[str],
) -> dict[int, int]:
    """The split of each unit; a class gets its fractions within one image, give or take half a group at a cut.

    The units of a class are put in the order of their numbers, and the order is cut. An image more or less in a
    class moves at most one unit across each cut, the one beside it, and none of other classes. The offset of a
    class decides which way its cuts are rounded, so that small classes together have the fractions, too. Units
    of several classes are divided with the smallest of them; then units move as long as that helps all classes.

    Args:
        classes: Of each class its units with the number of their images in the class.
        numbers: Of units, from `split_number`.
        fractions: Of the splits; they sum to 1.
        offsets: Of classes, in [0, 1).
        filled: Classes of which each split gets a unit if there are enough.
    """
    splits, cuts = range(len(fractions)), list(accumulate(fractions))[:-1]
    placed: dict[int, int] = {}
    for name in sorted(classes, key=lambda name: (len(classes[name]), name)):
        units = classes[name]
        count = sum(units.values())
        fixed = Counter({split: 0 for split in splits})
        for unit in units.keys() & placed.keys():
            fixed[placed[unit]] += units[unit]
        free = sorted(units.keys() - placed.keys(), key=lambda unit: (numbers[unit], unit))
        middles = [
            end - units[unit] / 2 for unit, end in zip(free, accumulate(map(units.__getitem__, free)), strict=True)
        ]
        needs = [int(name in filled and not fixed[split]) for split in splits]
        edges = [0]
        for split, cut in enumerate(cuts):
            # Rounding removes the error of binary fractions, such as 0.1 * 30 = 3.0000000000000004.
            position = round(cut * count, 6) + offsets[name] - 0.5 - sum(fixed[p] for p in range(split + 1))
            edge = min(bisect_left(middles, position), len(free) - sum(needs[split + 1 :]))
            edges.append(min(max(edge, edges[-1] + needs[split]), len(free)))
        for split, (start, end) in enumerate(pairwise((*edges, len(free)))):
            placed |= dict.fromkeys(free[start:end], split)
    _balance_shared(classes, placed, fractions, filled)
    return placed


def _balance_shared(
    classes: Mapping[str, Mapping[int, int]],
    placed: dict[int, int],
    fractions: Sequence[float],
    filled: Collection[str],
) -> None:
    """Moves single units of classes that share some, until no move helps; edits `placed`."""
    names: dict[int, list[str]] = {}
    for name, units in classes.items():
        for unit in units:
            names.setdefault(unit, []).append(name)
    shared = {name for own in names.values() if len(own) > 1 for name in own}
    movable = sorted(unit for unit, own in names.items() if shared.intersection(own))
    counts = {name: [0] * len(fractions) for name in shared}
    for unit in movable:
        for name in names[unit]:
            counts[name][placed[unit]] += classes[name][unit]

    def cost(name: str) -> tuple[int, float]:
        size = sum(counts[name])
        gaps = ((got - fraction * size) ** 2 for got, fraction in zip(counts[name], fractions, strict=True))
        return (counts[name].count(0) if name in filled else 0), sum(gaps)

    def move(unit: int, split: int) -> tuple[int, float]:
        """Moves a unit, and returns the cost of its classes after that."""
        for name in names[unit]:
            counts[name][placed[unit]] -= classes[name][unit]
            counts[name][split] += classes[name][unit]
        placed[unit] = split
        empty, gaps = zip(*map(cost, names[unit]), strict=True)
        return sum(empty), round(sum(gaps), 6)

    draw = random.Random(0)
    for _ in range(RESTARTS):
        moving = True
        while moving:
            moving = False
            for unit in movable:
                home = placed[unit]
                costs = {split: move(unit, split) for split in (home, *(p for p in range(len(fractions)) if p != home))}
                best = min(costs, key=costs.__getitem__)  # the first of equals: it stays
                move(unit, best)
                moving = moving or best != home
        if not any(cost(name)[0] for name in shared):
            return
        for unit in movable:
            move(unit, draw.randrange(len(fractions)))
