"""Cross-validation: every photo is tested once, by a network that has not seen it."""

from collections.abc import Sequence

from flowers_torch.data.dataset import ImageDataset
from flowers_torch.data.splits.assign import Splits, group_units, split_number
from flowers_torch.errors import DataError, printable


def make_folds(
    photos: ImageDataset, folds: int = 5, seed: int = 0, groups: Sequence[Sequence[int]] = ()
) -> list[Splits]:
    """Stratified folds as splits: fold k is the test of split k, the next fold its val, the others its train.

    The photos of a class are dealt out in the order of their split numbers, so fold sizes of a class differ
    by at most one photo or group. Unlike `split_dataset`, an added photo can move others here.

    Args:
        photos: The set; a split of its own is not looked at.
        folds: At least 3.
        seed: Another seed deals otherwise.
        groups: Photos that must stay together.

    Raises:
        DataError: fewer than 3 folds, or a class with fewer photos (or groups) than folds.
    """
    if folds < 3:
        raise DataError(f"{folds} folds leave none to train on beside val and test", "use at least 3")
    units = group_units(photos, groups)
    fold_of: dict[int, int] = {}
    dealt = 0  # goes on from class to class, so that the folds as a whole are even too
    for label, name in enumerate(photos.classes):
        own = {unit for unit, x in zip(units, photos.labels, strict=True) if x == label} - fold_of.keys()
        if len(own) < folds:
            raise DataError(
                f"class {printable(name)} has {len(own)} photos or groups, too few for {folds} folds",
                "use fewer folds or add photos",
            )
        for unit in sorted(own, key=lambda unit: split_number(photos.paths[unit], seed)):
            fold_of[unit] = dealt % folds
            dealt += 1
    members: list[list[int]] = [[] for _ in range(folds)]
    for index, unit in enumerate(units):
        members[fold_of[unit]].append(index)
    return [
        {
            "train": sorted(i for k in range(2, folds) for i in members[(fold + k) % folds]),
            "val": members[(fold + 1) % folds],
            "test": members[fold],
        }
        for fold in range(folds)
    ]
