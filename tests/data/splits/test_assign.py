"""Splits are disjoint, stratified and reproducible, and added images move no others."""

import dataclasses
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowers_torch.data.dataset import ImageDataset
from flowers_torch.data.splits.assign import (
    SPLITS,
    describe_splits,
    exact_split,
    is_imbalanced,
    split_dataset,
    split_number,
)
from flowers_torch.errors import DataError


def made_up(sizes, split=None, root=Path("nowhere")) -> ImageDataset:
    rows = [(f"class{c}/{i}.jpg", c) for c, size in enumerate(sizes) for i in range(size)]
    classes = tuple(f"class{c}" for c in range(len(sizes)))
    return ImageDataset("set", root, classes, tuple(r[0] for r in rows), tuple(r[1] for r in rows), split or {})


def split_by_path(dataset, splits) -> dict[str, str]:
    return {dataset.paths[i]: split for split, indices in splits.items() for i in indices}


def class_counts(dataset, indices) -> list[int]:
    counts = Counter(dataset.labels[i] for i in indices)
    return [counts[c] for c in range(len(dataset.classes))]


def test_the_split_number_never_changes():
    """A change here would move every user's photos between train and test."""
    assert split_number("rose/1.jpg", 0) == pytest.approx(0.1695787118, abs=1e-9)
    assert split_number("rose/1.jpg", 1) != split_number("rose/1.jpg", 0)
    assert split_number("\xe9/1.jpg", 0) == split_number("e\u0301/1.jpg", 0)
    assert 0 <= split_number("\udcff.jpg", 0) < 1  # a name that is not valid UTF-8


def test_disjoint_whole_and_near_the_fractions():
    dataset = made_up([400, 400, 400])
    splits = split_dataset(dataset, (0.6, 0.2, 0.2), seed=3)
    assert sorted(sum(splits.values(), [])) == list(range(1200))
    for split, fraction in zip(SPLITS, (0.6, 0.2, 0.2), strict=True):
        assert splits[split] == sorted(splits[split])
        for count in class_counts(dataset, splits[split]):
            assert abs(count - 400 * fraction) < 40  # 4 standard deviations of a binomial
    assert splits == split_dataset(dataset, (0.6, 0.2, 0.2), seed=3)
    assert splits != split_dataset(dataset, (0.6, 0.2, 0.2), seed=4)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.sets(st.integers(0, 149), max_size=30))
def test_added_and_removed_images_move_no_others(seed, removed):
    dataset = made_up([50, 50, 50])
    keep = [i for i in range(150) if i not in removed]
    fewer = dataclasses.replace(
        dataset, paths=tuple(dataset.paths[i] for i in keep), labels=tuple(dataset.labels[i] for i in keep)
    )
    before, after = (split_by_path(p, split_dataset(p, seed=seed)) for p in (fewer, dataset))
    assert all(after[path] == split for path, split in before.items())


@pytest.mark.parametrize("seed", range(20))
def test_small_classes_are_in_every_split(seed):
    dataset = made_up([3, 4, 5, 40])
    splits = split_dataset(dataset, seed=seed)
    for split in SPLITS:
        assert min(class_counts(dataset, splits[split])) >= 1
    without_test = split_dataset(dataset, (0.8, 0.2, 0), seed=seed)
    assert without_test["test"] == []


def test_a_class_with_fewer_images_than_splits_is_an_error():
    with pytest.raises(DataError, match="class1 has 2 photos, too few"):
        split_dataset(made_up([9, 2]))
    with pytest.raises(DataError, match="class1 has 1 photo,"):
        split_dataset(made_up([9, 1]), (0.5, 0.5, 0))


@pytest.mark.parametrize("fractions", [(1, 0, 0), (0, 0.5, 0.5), (0.5, 0.5), (0.5, 0.5, 0.5), (1.5, -0.5, 0)])
def test_impossible_fractions(fractions):
    with pytest.raises(DataError, match="fractions"):
        split_dataset(made_up([9, 9]), fractions)


def test_the_split_of_the_source_is_unchanged():
    dataset = made_up([30, 30])
    given_split = {path: SPLITS[i % 3] for i, path in enumerate(dataset.paths)}
    dataset = dataclasses.replace(dataset, split=given_split)
    assert split_by_path(dataset, split_dataset(dataset, seed=5)) == given_split


@pytest.mark.parametrize("missing", ["val", "test"])
def test_a_split_that_the_source_lacks_is_drawn_from_train(missing):
    dataset = made_up([200, 200])
    other = {"val": "test", "test": "val"}[missing]
    given_split = {path: other if i % 4 == 0 else "train" for i, path in enumerate(dataset.paths)}
    dataset = dataclasses.replace(dataset, split=given_split)
    splits = split_dataset(dataset, (0.6, 0.2, 0.2), seed=1)
    found = split_by_path(dataset, splits)
    assert [i for i in range(400) if i % 4 == 0] == splits[other]
    assert all(given_split[dataset.paths[i]] == "train" for i in splits[missing])
    assert 0.15 < len(splits[missing]) / 300 < 0.35 and len(found) == 400


def test_exact_split_of_flowers17():
    dataset = made_up([80] * 17)
    splits = exact_split(dataset, (800, 280, 280), seed=0)
    assert [len(splits[split]) for split in SPLITS] == [800, 280, 280]
    assert sorted(sum(splits.values(), [])) == list(range(1360))
    for split in SPLITS:
        counts = class_counts(dataset, splits[split])
        assert max(counts) - min(counts) <= 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=8), st.data())
def test_exact_split_sums_and_stays_in_proportion(sizes, data):
    total = sum(sizes)
    train = data.draw(st.integers(0, total))
    val = data.draw(st.integers(0, total - train))
    test = data.draw(st.integers(0, total - train - val))
    dataset = made_up(sizes)
    splits = exact_split(dataset, (train, val, test), seed=data.draw(st.integers(0, 9)))
    assert [len(splits[split]) for split in SPLITS] == [train, val, test]
    assert len(set(sum(splits.values(), []))) == train + val + test
    for split, count in zip(SPLITS, (train, val, test), strict=True):
        for size, found in zip(sizes, class_counts(dataset, splits[split]), strict=True):
            assert abs(found - count * size / total) <= 1


def test_an_exact_split_of_too_many_images_is_an_error():
    with pytest.raises(DataError, match="20"):
        exact_split(made_up([10, 10]), (15, 5, 5))


def test_what_is_imbalanced():
    assert is_imbalanced(made_up([30, 10])) and not is_imbalanced(made_up([29, 10]))


def test_the_description_names_an_imbalance():
    dataset = made_up([10, 12])
    assert describe_splits(dataset, {"train": [0, 1], "val": [2], "test": []}) == (
        "22 photos of 2 classes: 2 train, 1 val, 0 test"
    )
    assert "imbalanced: 40 of class1, 10 of class0" in describe_splits(made_up([10, 40]), {"train": []})


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 99),
    st.lists(st.lists(st.integers(0, 59), min_size=2, max_size=4, unique=True), max_size=4),
)
def test_groups_stay_in_one_split(seed, groups):
    taken: set[int] = set()
    groups = [g for g in groups if not taken & set(g) and not taken.update(g)]
    dataset = made_up([30, 30])
    splits = split_dataset(dataset, seed=seed, groups=groups)
    assert sorted(sum(splits.values(), [])) == list(range(60))
    found = split_by_path(dataset, splits)
    for group in groups:
        assert len({found[dataset.paths[i]] for i in group}) == 1
    for split in SPLITS:
        assert min(class_counts(dataset, splits[split])) >= 1
    grouped = {i for group in groups for i in group}
    alone = split_by_path(dataset, split_dataset(dataset, seed=seed))
    moved = [i for i in range(60) if i not in grouped and found[dataset.paths[i]] != alone[dataset.paths[i]]]
    assert moved == []


def test_a_class_that_is_one_group_cannot_be_split():
    with pytest.raises(DataError, match="class0 has 2 photos that are not in one group"):
        split_dataset(made_up([4, 9]), groups=[[0, 1, 2]])


def test_exact_split_keeps_groups_whole():
    dataset = made_up([80] * 17)
    groups = [[i, i + 40] for i in range(0, 1360, 80)] + [[5, 6, 7]]
    splits = exact_split(dataset, (800, 280, 280), seed=1, groups=groups)
    assert [len(splits[split]) for split in SPLITS] == [800, 280, 280]
    for group in groups:
        assert sum(bool(set(group) & set(indices)) for indices in splits.values()) == 1
    with pytest.raises(DataError, match="class0 do not fill"):
        exact_split(made_up([4, 4]), (2, 2, 4), groups=[[0, 1, 2, 3]])
