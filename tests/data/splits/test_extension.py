"""New photos for a set that is split already: known pictures keep their part, or the growth is refused."""

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from flowers_torch.data.dataset import ImageDataset
from flowers_torch.data.quality.inspection import Inspection, inspect_image
from flowers_torch.data.sources.folders import find_images
from flowers_torch.data.splits.assign import split_number, split_of
from flowers_torch.data.splits.extension import AssignedImage, extend_splits
from flowers_torch.errors import DataError

SHARES = (0.6, 0.2, 0.2)


def picture(seed: int) -> Image.Image:
    """Blurred noise: every one is different to the hash too."""
    noise = np.random.default_rng(seed).integers(0, 256, (12, 12, 3)).astype(np.uint8)
    return Image.fromarray(noise).resize((96, 96)).filter(ImageFilter.GaussianBlur(3))


def draw(root: Path, **classes: range) -> Path:
    for name, seeds in classes.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for seed in seeds:
            picture(seed).save(root / name / f"{seed}.png")
    return root


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> ImageDataset:
    return find_images(draw(tmp_path_factory.mktemp("old"), rose=range(6), tulip=range(6, 12)))


def inspected(photos: ImageDataset) -> list[Inspection]:
    return [inspect_image(photos.root / path) for path in photos.paths]


SPLITS = ("train", "train", "val", "val", "test", "test")


def grown(known: ImageDataset, new: ImageDataset, groups: dict[str, str] | None = None) -> dict[str, str]:
    """Part of each photo that is added."""
    of = groups or {}
    old = [
        AssignedImage(
            known.root / path, known.classes[known.labels[i]], SPLITS[i % 6], path, of.get(path, "")
        )
        for i, path in enumerate(known.paths)
    ]
    added = extend_splits(old, inspected(known), new, inspected(new), SHARES, seed=3)
    assert all(member.file == new.root / member.name for member in added)
    return {member.name: member.part for member in added}


def test_new_photos_of_known_classes_go_by_their_hash(known: ImageDataset, tmp_path: Path) -> None:
    new = find_images(draw(tmp_path, rose=range(100, 120)), fewest=1)
    shares = dict(zip(("train", "val", "test"), SHARES, strict=True))
    found = grown(known, new)
    assert found == {path: split_of(split_number(path, 3), shares) for path in new.paths}
    assert len(set(found.values())) == 3


def test_known_photos_are_left_out_wherever_they_lie(known: ImageDataset, tmp_path: Path) -> None:
    draw(tmp_path, rose=range(200, 202))
    (tmp_path / "rose" / "again.png").write_bytes((known.root / "rose" / "5.png").read_bytes())
    os.symlink(known.root / "rose" / "0.png", tmp_path / "rose" / "linked.png")
    assert grown(known, find_images(tmp_path, fewest=1)).keys() == {"rose/200.png", "rose/201.png"}


def test_other_pictures_of_the_same_join_its_part(known: ImageDataset, tmp_path: Path) -> None:
    draw(tmp_path, rose=range(300, 301))
    for seed in range(6):  # scaled and stored again, some in a mirror
        image = picture(seed).resize((80, 80))
        flipped = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if seed % 2 else image
        flipped.save(tmp_path / "rose" / f"twin{seed}.jpg", quality=92)
    found = grown(known, find_images(tmp_path, fewest=1))
    assert {f"rose/twin{seed}.jpg": part for seed, part in enumerate(SPLITS)}.items() <= found.items()


@pytest.mark.parametrize("copy", ["bytes", "twin"])
@pytest.mark.parametrize(("seed", "wanted"), [(4, "train"), (0, "test"), (2, "train"), (5, "val")])
def test_what_would_spoil_a_test_is_refused(
    known: ImageDataset, tmp_path: Path, copy: str, seed: int, wanted: str
) -> None:
    draw(tmp_path / wanted, rose=range(400, 402))
    place = tmp_path / wanted / "rose" / "leak.png"
    if copy == "bytes":
        place.write_bytes((known.root / "rose" / f"{seed}.png").read_bytes())
    else:
        picture(seed).resize((120, 120)).save(place)
    new = find_images(tmp_path / wanted, fewest=1)
    new = dataclasses.replace(new, split=dict.fromkeys(new.paths, wanted))
    with pytest.raises(
        DataError, match=rf"leak.png \({wanted}\) belongs with rose/{seed}.png \({SPLITS[seed]}\)"
    ):
        grown(known, new)


def test_new_photos_that_spoil_their_own_test_are_refused(known: ImageDataset, tmp_path: Path) -> None:
    draw(tmp_path, rose=range(700, 703))
    picture(700).resize((64, 64)).save(tmp_path / "rose" / "twin.png")
    new = find_images(tmp_path, fewest=1)
    apart = dict.fromkeys(new.paths, "train") | {"rose/twin.png": "test"}
    with pytest.raises(DataError, match=r"twin.png \(test\) belongs with rose/700.png \(train\)"):
        grown(known, dataclasses.replace(new, split=apart))
    assert grown(known, dataclasses.replace(new, split=dict.fromkeys(new.paths, "test")))


def test_groups_of_the_source_stay_together(known: ImageDataset, tmp_path: Path) -> None:
    new = find_images(draw(tmp_path, rose=range(800, 812)), fewest=1)
    groups = {path: f"bush{i % 2}" for i, path in enumerate(new.paths)}
    found = grown(known, dataclasses.replace(new, groups=groups), {"rose/2.png": "bush0"})
    assert {found[path] for path in new.paths[::2]} == {"val"}
    assert len({found[path] for path in new.paths[1::2]}) == 1


def test_a_known_photo_under_another_class_is_refused(known: ImageDataset, tmp_path: Path) -> None:
    draw(tmp_path, tulip=range(500, 501))
    (tmp_path / "tulip" / "x.png").write_bytes((known.root / "rose" / "5.png").read_bytes())
    with pytest.raises(DataError, match=r"tulip/x.png is rose/5.png, known as rose; fix: decide"):
        grown(known, find_images(tmp_path, fewest=1))


def test_a_new_class_is_in_every_part(known: ImageDataset, tmp_path: Path) -> None:
    draw(tmp_path, orchid=range(600, 604))
    picture(600).resize((64, 64)).save(tmp_path / "orchid" / "twin.png")
    found = grown(known, find_images(tmp_path, fewest=1))
    assert set(found.values()) == {"train", "val", "test"} and len(found) == 5
    assert found["orchid/600.png"] == found["orchid/twin.png"]
    few = draw(tmp_path / "few", lily=range(610, 612))
    with pytest.raises(DataError, match="class lily has 2 photos, too few"):
        grown(known, find_images(few, fewest=1))
