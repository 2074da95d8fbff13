"""Saved splits: they come back, and notice when the photos are others."""

import dataclasses
import json

import pytest

from flowers_torch.data.dataset import ImageDataset
from flowers_torch.data.splits.assign import SPLITS, split_dataset
from flowers_torch.data.splits.split_file import load_split, save_split
from flowers_torch.errors import DataError


def made_up(root) -> ImageDataset:
    rows = [(f"class{c}/{i}.jpg", c) for c in range(2) for i in range(6)]
    return ImageDataset(
        "set", root, ("class0", "class1"), tuple(r[0] for r in rows), tuple(r[1] for r in rows)
    )


@pytest.fixture
def stored(tmp_path):
    photos = made_up(tmp_path / "data")
    for path in photos.paths:
        (photos.root / path).parent.mkdir(parents=True, exist_ok=True)
        (photos.root / path).write_bytes(path.encode() * 10_000)
    split = split_dataset(photos, seed=2)
    save_split(split, photos, tmp_path / "split.json", seed=2)
    return tmp_path / "split.json", photos, split


def test_a_saved_split_comes_back(stored):
    path, photos, split = stored
    found, changes = load_split(path, photos)
    assert found == split and not changes
    changes.refuse(path, "nothing to restore")
    content = json.loads(path.read_text())
    assert content["seed"] == 2 and content["counts"] == {part: len(split[part]) for part in SPLITS}


def test_changes_are_counted_by_part_and_refused(stored):
    path, photos, split = stored
    edited = photos.root / photos.paths[3]
    edited.write_bytes(edited.read_bytes()[:-1] + b"!")  # of the same size
    now = dataclasses.replace(
        photos, paths=(*photos.paths[2:], "class1/new.jpg"), labels=(*photos.labels[2:], 1)
    )
    kept, changes = load_split(path, now)
    split_of = {photos.paths[i]: part for part, indices in split.items() for i in indices}
    assert changes.added == ["class1/new.jpg"]
    for found, index in ((changes.missing, 0), (changes.missing, 1), (changes.edited, 3)):
        assert photos.paths[index] in found[split_of[photos.paths[index]]]
    assert changes.counts() == {"missing": 2, "edited": 1, "added": 1}
    with pytest.raises(DataError, match="2 missing, 1 edited, 1 added.*class0/0.jpg.*fix: put them back"):
        changes.refuse(path, "put them back")
    for text in ("in none          0        0        1", "first missing: class0/0.jpg"):
        assert text in changes.table()
    ours = {now.paths[i]: part for part, indices in kept.items() for i in indices}
    assert ours == {p: part for p, part in split_of.items() if p in photos.paths[2:]}


def test_a_part_that_is_gone_is_refused(stored):
    path, photos, split = stored
    left = [i for i in range(len(photos)) if i not in split["val"]]
    now = dataclasses.replace(
        photos, paths=tuple(photos.paths[i] for i in left), labels=tuple(photos.labels[i] for i in left)
    )
    with pytest.raises(DataError, match="none of the val photos"):
        load_split(path, now)


def test_other_classes_are_refused(stored):
    path, photos, _ = stored
    with pytest.raises(DataError, match="other classes"):
        load_split(path, dataclasses.replace(photos, classes=("class1", "class0")))


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"parts": {}, "classes": []}', '{"parts": {}, "classes": [], "format": 1}']
)
def test_damaged_splits(stored, text):
    path, photos, _ = stored
    path.write_text(text)
    with pytest.raises(DataError, match="split"):
        load_split(path, photos)


def test_a_photo_in_two_parts_is_refused(stored):
    path, photos, _ = stored
    content = json.loads(path.read_text())
    content["parts"]["val"] |= content["parts"]["train"]
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="two parts"):
        load_split(path, photos)
