"""Splits for cross-validation: every image is tested once, by a network that was not trained on it."""

from collections.abc import Sequence

from flowers_torch.data.dataset import ImageDataset
from flowers_torch.data.splits.assign import Splits, group_units, split_number
from flowers_torch.errors import DataError, printable


def make_folds(
    dataset: ImageDataset, folds: int = 5, seed: int = 0, groups: Sequence[Sequence[int]] = ()
) -> list[Splits]:
    """Stratified folds as splits: fold k is the test of split k, the next fold its val, the rest its train.

    The images of a class are dealt in the order of their split numbers, so the folds of a class differ by at
    most one image or group. Unlike in `split_dataset`, an added image can move others.

    Args:
        dataset: A split of its source is ignored.
        folds: At least 3.
        groups: Images that stay together.

    Raises:
        DataError: fewer than 3 folds, or a class with fewer images or groups than folds.
    """
    if folds < 3:
        raise DataError(f"{folds} folds leave none to train on beside val and test", "use at least 3")
    units = group_units(dataset, groups)
    fold_of: dict[int, int] = {}
    dealt = 0  # continues from class to class, so that the folds are even as a whole
    for label, name in enumerate(dataset.classes):
        own = {unit for unit, x in zip(units, dataset.labels, strict=True) if x == label} - fold_of.keys()
        if len(own) < folds:
            what = f"class {printable(name)} has {len(own)} photos or groups, too few for {folds} folds"
            raise DataError(what, "use fewer folds or add photos")
        for unit in sorted(own, key=lambda unit: split_number(dataset.paths[unit], seed)):
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
