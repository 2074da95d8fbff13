"""Folds: every image is tested once, classes are even, groups stay together."""

import dataclasses
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
    assert len(splits) == folds
    for k, split in enumerate(splits):
        assert sorted(sum(split.values(), [])) == list(range(102))
        assert split["val"] == splits[(k + 1) % folds]["test"]
    for label in range(3):
        counts = [Counter(dataset.labels[i] for i in split["test"])[label] for split in splits]
        assert max(counts) - min(counts) <= 1
    assert splits == make_folds(dataset, folds, seed=1) != make_folds(dataset, folds, seed=2)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 999), st.integers(3, 8), st.lists(st.integers(8, 40), min_size=2, max_size=4))
def test_an_added_photo_moves_one_photo_at_each_cut(seed, folds, sizes):
    fewer = made_up(sizes)
    more = dataclasses.replace(fewer, paths=("class0/0new.jpg", *fewer.paths), labels=(0, *fewer.labels))
    before, after = (
        {d.paths[i]: k for k, split in enumerate(make_folds(d, folds, seed)) for i in split["test"]}
        for d in (fewer, more)
    )
    moved = Counter(tuple(sorted((before[p], after[p]))) for p in before if before[p] != after[p])
    assert all(high == low + 1 and count == 1 for (low, high), count in moved.items())
    assert all(p.startswith("class0/") for p in before if before[p] != after[p])


def test_groups_of_several_classes_lose_no_class():
    dataset = made_up([12, 12])
    groups = [[i, 12 + i] for i in range(0, 12, 2)]
    for seed in range(50):
        for split in make_folds(dataset, 4, seed, groups):
            assert {dataset.labels[i] for i in split["test"]} == {0, 1}
            assert sum(dataset.labels[i] for i in split["test"]) in (2, 3, 4)


def test_groups_stay_whole():
    dataset = made_up([20, 20])
    groups = [[0, 5, 7], [21, 22], [3, 25]]
    for split in make_folds(dataset, 4, groups=groups):
        for group in groups:
            assert len({split for split, indices in split.items() for i in group if i in indices}) == 1
        assert sorted(sum(split.values(), [])) == list(range(40))


def test_too_few():
    with pytest.raises(DataError, match="class1 has 4 photos, too few to be in fold 1, .*fold 5; fix"):
        make_folds(made_up([9, 4]))
    with pytest.raises(DataError, match="2 folds"):
        make_folds(made_up([9, 9]), 2)
