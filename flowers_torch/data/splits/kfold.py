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
    most one image or group. Unlike in `split_dataset`, an added image can move others. `groups` stay together,
    and a split of the source is ignored. Fewer than 3 folds, or a class too small for them, is a `DataError`.
    """
    if folds < 3:
        raise DataError(f"{folds} folds leave none to train on beside val and test", "use at least 3")
    units = group_units(dataset, groups)
    fold_of: dict[int, int] = {}
    for label, name in enumerate(dataset.classes):
        own = {unit for unit, x in zip(units, dataset.labels, strict=True) if x == label} - fold_of.keys()
        if len(own) < folds:
            what = f"class {printable(name)} has {len(own)} photos or groups, too few for {folds} folds"
            raise DataError(what, "use fewer folds or add photos")
        for unit in sorted(own, key=lambda unit: split_number(dataset.paths[unit], seed)):
            fold_of[unit] = len(fold_of) % folds  # continues from class to class: the folds are even as a whole
    members: list[list[int]] = [[] for _ in range(folds)]
    for index, unit in enumerate(units):
        members[fold_of[unit]].append(index)
    splits = []
    for fold in range(folds):
        train = sorted(i for k in range(2, folds) for i in members[(fold + k) % folds])
        splits.append({"train": train, "val": members[(fold + 1) % folds], "test": members[fold]})
    return splits
