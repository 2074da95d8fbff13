"""Folds: every image is tested once, classes are even, groups stay together."""

from collections import Counter
from pathlib import Path

import pytest

from flowers_torch.data.dataset import ImageDataset
from flowers_torch.data.splits.kfold import make_folds
from flowers_torch.errors import DataError


def made_up(sizes) -> ImageDataset:
    rows = [(f"class{c}/{i}.jpg", c) for c, size in enumerate(sizes) for i in range(size)]
    classes = tuple(f"class{c}" for c in range(len(sizes)))
    return ImageDataset("set", Path("nowhere"), classes, tuple(r[0] for r in rows), tuple(r[1] for r in rows))


@pytest.mark.parametrize("folds", [3, 5, 10])
def test_each_image_is_tested_once(folds):
    dataset = made_up([33, 41, 28])
    splits = make_folds(dataset, folds, seed=1)
    assert sorted(sum((split["test"] for split in splits), [])) == list(range(102))
    sizes = [len(split["test"]) for split in splits]
    assert len(splits) == folds and max(sizes) - min(sizes) <= 1
    for k, split in enumerate(splits):
        assert sorted(sum(split.values(), [])) == list(range(102))
        assert split["val"] == splits[(k + 1) % folds]["test"]
    for label in range(3):
        counts = [Counter(dataset.labels[i] for i in split["test"])[label] for split in splits]
        assert max(counts) - min(counts) <= 1
    assert splits == make_folds(dataset, folds, seed=1) != make_folds(dataset, folds, seed=2)


def test_groups_stay_whole():
    dataset = made_up([20, 20])
    groups = [[0, 5, 7], [21, 22], [3, 25]]
    for split in make_folds(dataset, 4, groups=groups):
        for group in groups:
            assert len({split for split, indices in split.items() for i in group if i in indices}) == 1
        assert sorted(sum(split.values(), [])) == list(range(40))


def test_too_few():
    with pytest.raises(DataError, match="class1 has 4 photos or groups, too few for 5"):
        make_folds(made_up([9, 4]))
    with pytest.raises(DataError, match="2 folds"):
        make_folds(made_up([9, 9]), 2)
