"""Splits are disjoint, stratified and reproducible, and added images move only those beside a cut."""

import dataclasses
import re
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
    group_units,
    is_imbalanced,
    split_dataset,
)
from flowers_torch.data.splits.stratify import split_number
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


def gaps(dataset, splits, fractions) -> list[float]:
    """Photos of each class and split beyond the fraction."""
    counts = dataset.counts()
    return [
        got - fraction * size
        for split, fraction in zip(SPLITS, fractions, strict=True)
        for got, size in zip(class_counts(dataset, splits[split]), counts, strict=True)
    ]


def with_photos(dataset, paths: dict[str, int]) -> ImageDataset:
    """The dataset with more photos (path to label), in the order of the paths."""
    rows = sorted([*zip(dataset.paths, dataset.labels, strict=True), *paths.items()])
    return dataclasses.replace(dataset, paths=tuple(r[0] for r in rows), labels=tuple(r[1] for r in rows))


def moves(before: dict[str, str], after: dict[str, str]) -> Counter:
    """Photos of both by class folder, old split and new split."""
    both = before.keys() & after.keys()
    return Counter((p.split("/")[0], before[p], after[p]) for p in both if before[p] != after[p])


ORDERS = [
    (0.6, 0.2, 0.2),
    (0.7, 0.15, 0.15),
    (0.8, 0.1, 0.1),
    (0.9, 0.05, 0.05),
    (1 / 3, 1 / 3, 1 / 3),
    (0.2, 0.3, 0.5),
]
FRACTIONS = st.sampled_from(ORDERS)
CUTS = {("train", "val"), ("val", "train"), ("val", "test"), ("test", "val")}


def test_the_split_number_never_changes():
    """A change here would move every user's photos between train and test."""
    assert split_number("rose/1.jpg", 0) == pytest.approx(0.1695787118, abs=1e-9)
    assert split_number("rose/1.jpg", 1) != split_number("rose/1.jpg", 0)
    assert split_number("\xe9/1.jpg", 0) == split_number("e\u0301/1.jpg", 0)
    assert 0 <= split_number("\udcff.jpg", 0) < 1  # a name that is not valid UTF-8


def test_disjoint_whole_and_reproducible():
    dataset = made_up([400, 400, 400])
    splits = split_dataset(dataset, (0.6, 0.2, 0.2), seed=3)
    assert sorted(sum(splits.values(), [])) == list(range(1200))
    assert all(splits[split] == sorted(splits[split]) for split in SPLITS)
    assert splits == split_dataset(dataset, (0.6, 0.2, 0.2), seed=3)
    assert splits != split_dataset(dataset, (0.6, 0.2, 0.2), seed=4)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("classes", [3, 4, 5])
def test_fractions_that_fit_are_exact(classes, seed):
    dataset = made_up([30] * classes)
    for fractions, counts in (
        ((0.6, 0.2, 0.2), (18, 6, 6)),
        ((0.8, 0.1, 0.1), (24, 3, 3)),
        ((0.5, 0.3, 0.2), (15, 9, 6)),
    ):
        splits = split_dataset(dataset, fractions, seed)
        assert [class_counts(dataset, splits[split]) for split in SPLITS] == [[n] * classes for n in counts]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(3, 70), min_size=2, max_size=5), FRACTIONS, st.integers(0, 2**32 - 1))
def test_every_class_has_its_fractions_within_one_photo(sizes, fractions, seed):
    dataset = made_up(sizes)
    splits = split_dataset(dataset, fractions, seed)
    for size, found in zip(sizes * 3, gaps(dataset, splits, fractions), strict=True):
        # Where a fraction is less than a photo, that split gets one anyway, at the cost of the largest.
        assert abs(found) < 1 if min(fractions) * size >= 1 else found < 1
    assert all(min(class_counts(dataset, splits[split])) >= 1 for split in SPLITS)


def test_many_small_classes_have_the_fractions_together():
    dataset = made_up([8] * 100)  # a class alone has 5 + 1 + 2 or 4 + 2 + 2 or 5 + 2 + 1
    for seed in range(5):
        splits = split_dataset(dataset, seed=seed)
        for split, asked in zip(SPLITS, (480, 160, 160), strict=True):
            assert abs(len(splits[split]) - asked) < 25


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.integers(3, 40), min_size=2, max_size=4), FRACTIONS, st.integers(0, 999), st.text("abz09", min_size=1)
)
def test_an_added_or_removed_photo_moves_only_the_photo_at_each_cut(sizes, fractions, seed, name):
    fewer = made_up(sizes)
    more = with_photos(fewer, {f"class0/{name}.jpg": 0} if f"class0/{name}.jpg" not in fewer.paths else {})
    one, other = (split_by_path(d, split_dataset(d, fractions, seed)) for d in (fewer, more))
    for before, after in ((one, other), (other, one)):
        found = moves(before, after)
        assert all(place == "class0" and {(old, new)} <= CUTS for place, old, new in found)
        for low, high in (("train", "val"), ("val", "test")):
            assert found["class0", low, high] + found["class0", high, low] <= 1
        # What moves is beside the cut: the photo with the largest number of the lower split, or the smallest.
        own = {split: [p for p in before if before[p] == split and p.startswith("class0/")] for split in SPLITS}
        for path in (before.keys() & after.keys()) - {p for p in before if before[p] == after.get(p)}:
            beside = min if SPLITS.index(after[path]) < SPLITS.index(before[path]) else max
            known = [p for p in own[before[path]] if p in after]
            assert path == beside(known, key=lambda p: split_number(p, seed))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1000), st.sets(st.integers(0, 149), max_size=90), FRACTIONS)
def test_added_and_removed_photos_move_as_many_at_most(seed, removed, fractions):
    dataset = made_up([50, 50, 50])
    removed = {i for i in removed if i % 50 > 4}  # enough are left
    keep = [i for i in range(150) if i not in removed]
    fewer = dataclasses.replace(
        dataset, paths=tuple(dataset.paths[i] for i in keep), labels=tuple(dataset.labels[i] for i in keep)
    )
    before, after = (split_by_path(p, split_dataset(p, fractions, seed)) for p in (fewer, dataset))
    found = moves(before, after)
    for label in range(3):
        added = sum(dataset.labels[i] == label for i in removed)
        for low, high in (("train", "val"), ("val", "test")):
            assert found[f"class{label}", low, high] + found[f"class{label}", high, low] <= added


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 999), st.integers(0, 39), st.lists(st.integers(0, 39), min_size=2, max_size=5, unique=True))
def test_a_copy_with_a_longer_name_moves_only_what_is_at_a_cut(seed, original, group):
    dataset = made_up([40, 40])
    before = split_by_path(dataset, split_dataset(dataset, seed=seed, groups=[group]))
    path = f"class0/{original}.jpg"
    copy = f"class0/0 copy of {original}.jpg"  # sorts before all others
    more = with_photos(dataset, {copy: 0})
    groups = [[more.paths.index(dataset.paths[i]) for i in group], [more.paths.index(copy), more.paths.index(path)]]
    after = split_by_path(more, split_dataset(more, seed=seed, groups=groups))
    assert after[copy] == after[path]
    units = group_units(more, groups)
    number = {own: split_number(more.paths[units[i]], seed) for i, own in enumerate(more.paths)}
    for low, high in (("train", "val"), ("val", "test")):
        across = {number[p] for p in before if {before[p], after[p]} == {low, high}}
        assert len(across) <= 1  # one photo or one group
    assert all(p.startswith("class0/") for p in before if before[p] != after[p])


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 999), st.lists(st.integers(1, 6), min_size=4, max_size=20), FRACTIONS, st.text("abz09", min_size=1)
)
def test_an_added_photo_moves_one_group_at_each_cut(seed, sizes, fractions, name):
    dataset = made_up([sum(sizes), 9])
    ends = [sum(sizes[: k + 1]) for k in range(len(sizes))]
    groups = [[f"class0/{i}.jpg" for i in range(end - size, end)] for end, size in zip(ends, sizes, strict=True)]
    more = with_photos(dataset, {f"class0/new{name}.jpg": 0})
    before, after = (
        split_by_path(d, split_dataset(d, fractions, seed, [[d.paths.index(p) for p in own] for own in groups]))
        for d in (dataset, more)
    )
    changes = [(before[own[0]], after[own[0]]) for own in groups if before[own[0]] != after[own[0]]]
    assert set(changes) <= CUTS
    assert all(sum(set(change) == set(cut) for change in changes) <= 1 for cut in CUTS)


def test_the_shortest_path_decides_the_number_of_a_group():
    paths = ("a/Copy of 7.jpg", "a/7 (1).jpg", "a/7.jpg", "a/8.jpg", "a/cafe\u0301.jpg", "a/xcaf\xe9.jpg")
    dataset = ImageDataset("set", Path("nowhere"), ("a", "b"), paths, (0,) * 6)
    assert group_units(dataset, [[0, 1, 2, 3]]) == [2, 2, 2, 2, 4, 5]  # of equals the first
    assert group_units(dataset, [[4, 5]])[5] == 4  # 10 letters, however they are encoded


@pytest.mark.parametrize("seed", range(20))
def test_small_classes_are_in_every_split(seed):
    dataset = made_up([3, 4, 5, 40])
    splits = split_dataset(dataset, seed=seed)
    for split in SPLITS:
        assert min(class_counts(dataset, splits[split])) >= 1
    without_test = split_dataset(dataset, (0.8, 0.2, 0), seed=seed)
    assert without_test["test"] == []


def test_a_class_with_fewer_images_than_splits_is_an_error():
    with pytest.raises(DataError, match="class1 has 2 photos, too few .*leave it out with --exclude class:class1"):
        split_dataset(made_up([9, 2]))
    with pytest.raises(DataError, match="class1 has 1 photo,"):
        split_dataset(made_up([9, 1]), (0.5, 0.5, 0))
    text = (
        "class class1 has 2 photos, class class2 has 1 photo, too few to be in train, val, test; fix: add photos until "
    )
    with pytest.raises(
        DataError, match=f"{text}each has at least 3, or leave them out with --exclude class:.*1,class:.*2"
    ):
        split_dataset(made_up([9, 2, 1]))
    with pytest.raises(DataError, match="4 more classes have as few.* lines class:NAME in the file of --exclude"):
        split_dataset(made_up([9] + [2] * 24))


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
    dataset = made_up([200, 100, 12])
    other = {"val": "test", "test": "val"}[missing]
    given_split = {path: other if i % 4 == 0 else "train" for i, path in enumerate(dataset.paths)}
    dataset = dataclasses.replace(dataset, split=given_split)
    splits = split_dataset(dataset, (0.6, 0.2, 0.2), seed=1)
    assert [i for i in range(312) if i % 4 == 0] == splits[other]
    assert all(given_split[dataset.paths[i]] == "train" for i in splits[missing])
    for got, left in zip(class_counts(dataset, splits[missing]), (150, 75, 9), strict=True):
        assert abs(got - left / 4) < 1
    asked = f"(asked: 175.5, 58.5 train and {missing}, out of the training photos of the source)"
    assert asked in describe_splits(dataset, splits, (0.6, 0.2, 0.2))


def test_a_class_that_is_lost_from_a_split_of_the_source_is_an_error():
    dataset = made_up([9, 9])
    apart = {path: "test" if i < 3 else "train" for i, path in enumerate(dataset.paths)}
    with pytest.raises(DataError, match="no photo of class1 is left in test.*--exclude class:NAME"):
        split_dataset(dataclasses.replace(dataset, split=apart))


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


def test_the_description_says_what_was_asked_and_what_was_got():
    fractions = (0.6, 0.2, 0.2)
    dataset = made_up([31, 30, 30])
    text = describe_splits(dataset, split_dataset(dataset, fractions), fractions)
    assert text.endswith("(asked: 54.6, 18.2, 18.2)") and ": 5" in text
    groups = [list(range(k, k + 10)) for k in (0, 10, 20)]  # too large for a fraction of 20%
    text = describe_splits(dataset, split_dataset(dataset, fractions, 1, groups), fractions)
    assert re.search(
        r"asked: 54.6, 18.2, 18.2; \w+ of class0 is [+-]\d\.\d off, because .* groups stay together\)", text
    )
    given_split = {path: SPLITS[i % 3] for i, path in enumerate(dataset.paths)}
    dataset = dataclasses.replace(dataset, split=given_split)
    assert "(as the source splits them)" in describe_splits(dataset, split_dataset(dataset), fractions)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 99),
    st.lists(st.lists(st.integers(0, 59), min_size=2, max_size=4, unique=True), max_size=4),
    FRACTIONS,
)
def test_groups_stay_in_one_split(seed, groups, fractions):
    dataset = made_up([30, 30])
    splits = split_dataset(dataset, fractions, seed, groups)
    assert sorted(sum(splits.values(), [])) == list(range(60))
    found = split_by_path(dataset, splits)
    for group in groups:
        assert len({found[dataset.paths[i]] for i in group}) == 1
    for split in SPLITS:
        assert min(class_counts(dataset, splits[split])) >= 1


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 999), st.lists(st.integers(1, 6), min_size=8, max_size=20), FRACTIONS)
def test_a_group_goes_to_the_nearer_side_of_a_cut(seed, sizes, fractions):
    dataset = made_up([sum(sizes), 30])
    ends = [sum(sizes[: k + 1]) for k in range(len(sizes))]
    groups = [list(range(end - size, end)) for end, size in zip(ends, sizes, strict=True)]
    found = gaps(dataset, split_dataset(dataset, fractions, seed, groups), fractions)[::2]
    if min(fractions) * sum(sizes) >= max(sizes):
        assert max(map(abs, found)) < 1 + max(sizes)
        assert abs(found[0]) < 0.5 + max(sizes) / 2 and abs(found[2]) < 0.5 + max(sizes) / 2


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 999), st.lists(st.integers(3, 6), min_size=2, max_size=5), st.data())
def test_groups_of_several_tiny_classes_lose_none(seed, sizes, data):
    dataset = made_up(sizes)
    order = data.draw(st.permutations(range(len(dataset))))
    size = data.draw(st.integers(2, 3))
    groups = [order[k : k + size] for k in range(0, data.draw(st.integers(0, len(order))), size)]
    try:
        splits = split_dataset(dataset, seed=seed, groups=groups)
    except DataError as error:
        assert "--groups none" in str(error) and "class" in str(error)
        return
    found = split_by_path(dataset, splits)
    assert all(len({found[dataset.paths[i]] for i in group}) == 1 for group in groups)
    assert all(min(class_counts(dataset, splits[split])) >= 1 for split in SPLITS)


def test_patients_with_photos_of_both_classes():
    dataset = made_up([60, 60])
    patients = [[i for i in range(120) if i * 7 % 20 == patient] for patient in range(20)]
    assert all({dataset.labels[i] for i in patient} == {0, 1} for patient in patients)
    for seed in range(20):
        splits = split_dataset(dataset, seed=seed, groups=patients)
        assert max(map(abs, gaps(dataset, splits, (0.6, 0.2, 0.2)))) <= 3


def test_no_place_for_a_class_is_an_error():
    groups = [[0, 3, 6], [1, 4], [2, 7], [5, 8]]  # four groups, each two of them with a third in some class
    with pytest.raises(DataError, match="groups of several classes leave no photo of class. for .*--groups none"):
        split_dataset(made_up([3, 3, 3]), groups=groups)


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
