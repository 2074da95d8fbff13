"""Saved splits are restored and reveal changed images."""

import dataclasses
import json
import os

import pytest

from flowers_torch.data.dataset import ImageDataset
from flowers_torch.data.splits.assign import SPLITS, split_dataset
from flowers_torch.data.splits.split_file import load_split, save_split
from flowers_torch.errors import DataError


def made_up(root) -> ImageDataset:
    rows = [(f"class{c}/{i}.jpg", c) for c in range(2) for i in range(6)]
    return ImageDataset("set", root, ("class0", "class1"), tuple(r[0] for r in rows), tuple(r[1] for r in rows))


@pytest.fixture
def saved(tmp_path):
    dataset = made_up(tmp_path / "data")
    for path in dataset.paths:
        (dataset.root / path).parent.mkdir(parents=True, exist_ok=True)
        (dataset.root / path).write_bytes(path.encode() * 10_000)
    splits = split_dataset(dataset, seed=2)
    save_split(splits, dataset, tmp_path / "split.json", seed=2)
    return tmp_path / "split.json", dataset, splits


def test_a_saved_split_comes_back(saved):
    path, dataset, splits = saved
    found, changes = load_split(path, dataset)
    assert found == splits and not changes
    changes.refuse(path, "nothing to restore")
    content = json.loads(path.read_text())
    assert content["seed"] == 2 and content["counts"] == {split: len(splits[split]) for split in SPLITS}


def test_changes_are_counted_by_split(saved):
    path, dataset, splits = saved
    edited = dataset.root / dataset.paths[3]
    content, times = edited.read_bytes(), edited.stat()
    edited.write_bytes(content[:50_000] + b"!" + content[50_001:])  # in the middle, of the same size and time
    os.utime(edited, ns=(times.st_atime_ns, times.st_mtime_ns))
    now = dataclasses.replace(dataset, paths=(*dataset.paths[2:], "class1/new.jpg"), labels=(*dataset.labels[2:], 1))
    kept, changes = load_split(path, now)
    split_of = {dataset.paths[i]: split for split, indices in splits.items() for i in indices}
    assert changes.added == [("none", "class1/new.jpg")]
    for found, index in ((changes.missing, 0), (changes.missing, 1), (changes.edited, 3)):
        assert (split_of[dataset.paths[index]], dataset.paths[index]) in found
    assert changes.counts() == {"missing": 2, "edited": 1, "added": 1}
    with pytest.raises(DataError, match="2 missing, 1 edited, 1 added.*class0/[01].jpg.*fix: put them back"):
        changes.refuse(path, "put them back")
    for text in ("none             0        0        1", "first missing: class0/"):
        assert text in changes.table()
    ours = {now.paths[i]: split for split, indices in kept.items() for i in indices}
    assert ours == {p: split for p, split in split_of.items() if p in dataset.paths[2:]}


def test_a_split_without_images_is_an_error(saved):
    path, dataset, splits = saved
    left = [i for i in range(len(dataset)) if i not in splits["val"]]
    now = dataclasses.replace(
        dataset, paths=tuple(dataset.paths[i] for i in left), labels=tuple(dataset.labels[i] for i in left)
    )
    with pytest.raises(DataError, match="none of the val photos"):
        load_split(path, now)


def test_other_classes_are_refused(saved):
    path, dataset, _ = saved
    with pytest.raises(DataError, match="other classes"):
        load_split(path, dataclasses.replace(dataset, classes=("class1", "class0")))


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"splits": {}, "classes": []}', '{"splits": {}, "classes": [], "format": 1}'],
)
def test_damaged_splits(saved, text):
    path, dataset, _ = saved
    path.write_text(text)
    with pytest.raises(DataError, match="split"):
        load_split(path, dataset)


def test_an_image_in_two_splits_is_an_error(saved):
    path, dataset, _ = saved
    content = json.loads(path.read_text())
    content["splits"]["val"] |= content["splits"]["train"]
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="two splits"):
        load_split(path, dataset)
