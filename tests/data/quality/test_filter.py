"""What goes into training: bad photos stop it or are left out and said; twins stay together."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from flowers_torch.data.quality.filter import filter_images
from flowers_torch.data.sources.folders import find_images
from flowers_torch.errors import DataError


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(24):
        path = tmp_path / f"set/{'ab'[i % 2]}/{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(path)
    (tmp_path / "set/a/again.bmp").write_bytes(b"")
    Image.open(tmp_path / "set/a/0.png").save(tmp_path / "set/a/again.bmp")
    return find_images(tmp_path / "set")


def test_good_photos_with_their_twins(photos):
    admission = filter_images(photos)
    assert admission.photos is photos and admission.bad == {}
    (group,) = admission.duplicates
    assert {photos.paths[i] for i in group} == {"a/0.png", "a/again.bmp"}
    assert any("more than once" in s and "(first: a/0.png = a/again.bmp)" in s for s in admission.remarks)
    assert filter_images(photos, groups="none").duplicates == []


def test_animations_are_noted_once(photos):
    assert not any("hold several pictures" in line for line in filter_images(photos).remarks)
    first, second = (Image.new("RGB", (70, 70), colour) for colour in ("red", "blue"))
    for name in ("a/4.png", "b/5.png"):
        first.save(photos.root / name, "GIF", save_all=True, append_images=[second])
    assert sum("2 photos hold several pictures" in line for line in filter_images(photos).remarks) == 1


def test_bad_photos_stop_or_are_skipped(photos):
    bad = photos.root / "b/1.png"
    bad.write_bytes(bad.read_bytes()[:100])
    with pytest.raises(DataError, match=r"1 of 25 photos cannot be used.*1\.png.*--skip-bad"):
        filter_images(photos)
    admission = filter_images(photos, skip_bad=True)
    assert list(admission.bad) == ["b/1.png"] and "b/1.png" not in admission.photos.paths
    assert "1 photos cannot be used" in admission.remarks[0]


def test_all_of_a_class_bad(photos):
    for path in (photos.root / "b").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match="no photo of b"):
        filter_images(photos, skip_bad=True)


def test_quarantine_and_groups_from_tables(photos, tmp_path):
    (tmp_path / "exclude.csv").write_text("file,reason\na/again.bmp,exact_twins\n")
    (tmp_path / "groups.csv").write_text("file,group\na/0.png,x\na/2.png,x\n")
    admission = filter_images(photos, str(tmp_path / "exclude.csv"), str(tmp_path / "groups.csv"))
    assert "a/again.bmp" not in admission.photos.paths and admission.duplicates == []
    assert admission.photos == dataclasses.replace(admission.photos, groups={"a/0.png": "x", "a/2.png": "x"})
