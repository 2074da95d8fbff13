"""The filter before training: unreadable images, excluded images and duplicates."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from flowers_torch.data.quality.exclude import drop_images
from flowers_torch.data.quality.filter import filter_images
from flowers_torch.data.sources.folders import find_images
from flowers_torch.errors import DataError


@pytest.fixture
def dataset(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(24):
        path = tmp_path / f"set/{'ab'[i % 2]}/{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(path)
    (tmp_path / "set/a/again.bmp").write_bytes(b"")
    Image.open(tmp_path / "set/a/0.png").save(tmp_path / "set/a/again.bmp")
    return find_images(tmp_path / "set")


def test_good_images_and_their_duplicates(dataset):
    filtered = filter_images(dataset)
    assert filtered.dataset is dataset and filtered.unreadable == {}
    (group,) = filtered.duplicates
    assert {dataset.paths[i] for i in group} == {"a/0.png", "a/again.bmp"}
    assert any("more than once" in s and "(first: a/0.png = a/again.bmp)" in s for s in filtered.warnings)
    assert filter_images(dataset, groups="none").duplicates == []


def test_animations_give_one_warning(dataset):
    assert not any("hold several pictures" in line for line in filter_images(dataset).warnings)
    first, second = (Image.new("RGB", (70, 70), color) for color in ("red", "blue"))
    for name in ("a/4.png", "b/5.png"):
        first.save(dataset.root / name, "GIF", save_all=True, append_images=[second])
    assert sum("2 photos hold several pictures" in line for line in filter_images(dataset).warnings) == 1


def test_unreadable_images_are_an_error_or_skipped(dataset):
    bad = dataset.root / "b/1.png"
    bad.write_bytes(bad.read_bytes()[:100])
    with pytest.raises(DataError, match=r"1 of 25 photos cannot be used.*1\.png.*--skip-bad"):
        filter_images(dataset)
    filtered = filter_images(dataset, skip_bad=True)
    assert list(filtered.unreadable) == ["b/1.png"] and "b/1.png" not in filtered.dataset.paths
    assert "1 photo cannot be used" in filtered.warnings[0]


def test_all_of_a_class_bad(dataset):
    for path in (dataset.root / "b").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match="no photo of b"):
        filter_images(dataset, skip_bad=True)


def test_exclude_list_and_groups_from_tables(dataset, tmp_path):
    (tmp_path / "exclude.csv").write_text("file,reason\na/again.bmp,exact_duplicates\n")
    (tmp_path / "groups.csv").write_text("file,group\na/0.png,x\na/2.png,x\n")
    filtered = filter_images(dataset, str(tmp_path / "exclude.csv"), str(tmp_path / "groups.csv"))
    assert "a/again.bmp" not in filtered.dataset.paths and filtered.duplicates == []
    assert filtered.dataset == dataclasses.replace(filtered.dataset, groups={"a/0.png": "x", "a/2.png": "x"})


def test_classes_are_excluded_by_name(dataset, tmp_path):
    rows = [("c, d/x.png", "c, d", 2), ("e's/y.png", "e's", 1)]
    paths, labels = list(dataset.paths), list(dataset.labels)
    for label, (path, name, _) in enumerate(rows, start=2):
        (dataset.root / name).mkdir()
        (dataset.root / path).write_bytes((dataset.root / "a/2.png").read_bytes()[:90])  # left out before it is read
        paths.append(path)
        labels.append(label)
    order = [2, 0, 3, 1]  # the labels that are left change
    classes = ("a", "b", "c, d", "e's")
    more = dataclasses.replace(
        dataset,
        paths=tuple(paths),
        classes=tuple(classes[order.index(i)] for i in range(4)),
        labels=tuple(order[label] for label in labels),
        groups={"e's/y.png": "g", "a/0.png": "g"},
    )
    kept = filter_images(more, "class:c, d,class:e's", "none").dataset
    assert kept.paths == dataset.paths and kept.classes == ("b", "a") and kept.groups == {"a/0.png": "g"}
    assert [kept.classes[i] for i in kept.labels] == [dataset.classes[i] for i in dataset.labels]
    assert kept.notes == ("classes that are left out, with all their photos: e's, c, d",)
    (tmp_path / "list.csv").write_text('file,reason\na/2.png,x\n"class:c, d",few\nb/5.png,y\n')
    kept = filter_images(more, f"{tmp_path}/list.csv,class:e's", "none").dataset
    assert set(dataset.paths) - set(kept.paths) == {"a/2.png", "b/5.png"} and kept.classes == ("b", "a")
    assert kept.notes[1:] == ("2 photos are excluded",)
    with pytest.raises(
        DataError, match="names class C, which .* does not have; fix: correct the name; its classes are b,"
    ):
        filter_images(more, "class:C")
    with pytest.raises(DataError, match="no photo of c, d; fix: .* --exclude class:NAME"):
        (tmp_path / "list.csv").write_text('file\n"c, d/x.png"\n')
        filter_images(more, f"{tmp_path}/list.csv")


def test_a_photo_is_not_mistaken_for_a_class(dataset):
    odd = dataclasses.replace(dataset, paths=("class:a", *dataset.paths[1:]))
    kept = drop_images(odd, {"class:a": "a file"})
    assert kept.classes == ("a", "b") and len(kept) == len(odd) - 1
