"""The filter before training: unreadable images, excluded images and duplicates."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

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
    assert "1 photos cannot be used" in filtered.warnings[0]


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
