"""Splits for cross-validation: every image is tested once, by a network that was not trained on it."""

from collections.abc import Sequence

from flowers_torch.data.dataset import ImageDataset
from flowers_torch.data.splits.assign import Splits, divide_images
from flowers_torch.errors import DataError


def make_folds(
    dataset: ImageDataset, folds: int = 5, seed: int = 0, groups: Sequence[Sequence[int]] = ()
) -> list[Splits]:
    """Stratified folds as splits: fold k is the test of split k, the next fold its val, the rest its train.

    Images are divided as in `split_dataset`, so the folds of a class differ by at most one image as far as
    groups allow, and an added image moves at most one image or group from one fold to the next across each cut.
    `groups` stay together, and a split of the source is ignored. Fewer than 3 folds, or a class too small for
    them, is a `DataError`.
    """
    if folds < 3:
        raise DataError(f"{folds} folds leave none to train on beside val and test", "use at least 3")
    fractions = {f"fold {fold + 1}": 1 / folds for fold in range(folds)}
    placed = divide_images(dataset, range(len(dataset)), fractions, seed, groups)
    members = [[index for index, own in placed.items() if own == name] for name in fractions]
    splits = []
    for fold in range(folds):
        train = sorted(i for k in range(2, folds) for i in members[(fold + k) % folds])
        splits.append({"train": train, "val": members[(fold + 1) % folds], "test": members[fold]})
    return splits
