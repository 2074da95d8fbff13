"""Extension of a split: duplicates of known images join their split, and conflicts are errors."""

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from flowers_torch.data.dataset import ImageDataset
from flowers_torch.data.quality.inspection import Inspection, inspect_image
from flowers_torch.data.sources.folders import find_images
from flowers_torch.data.splits.extension import AssignedImage, extend_splits
from flowers_torch.errors import DataError

FRACTIONS = (0.6, 0.2, 0.2)


def noise_image(seed: int) -> Image.Image:
    """Blurred noise with a different hash for every seed."""
    noise = np.random.default_rng(seed).integers(0, 256, (12, 12, 3)).astype(np.uint8)
    return Image.fromarray(noise).resize((96, 96)).filter(ImageFilter.GaussianBlur(3))


def draw(root: Path, **classes: range) -> Path:
    for name, seeds in classes.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for seed in seeds:
            noise_image(seed).save(root / name / f"{seed}.png")
    return root


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> ImageDataset:
    return find_images(draw(tmp_path_factory.mktemp("old"), rose=range(6), tulip=range(6, 12)))


def inspected(dataset: ImageDataset) -> list[Inspection]:
    return [inspect_image(dataset.root / path) for path in dataset.paths]


SPLITS = ("train", "train", "val", "val", "test", "test")


def extend(known: ImageDataset, new: ImageDataset, groups: dict[str, str] | None = None) -> dict[str, str]:
    """Split of each added image."""
    of = groups or {}
    old = [
        AssignedImage(known.root / path, known.classes[known.labels[i]], SPLITS[i % 6], path, of.get(path, ""))
        for i, path in enumerate(known.paths)
    ]
    added, torn = extend_splits(old, inspected(known), new, inspected(new), FRACTIONS, seed=3)
    assert {member.name for member in added}.isdisjoint(torn)
    assert all(member.file == new.root / member.name for member in added)
    return {member.name: member.split for member in added}


def test_new_images_of_known_classes_are_stratified(known: ImageDataset, tmp_path: Path) -> None:
    new = find_images(draw(tmp_path, rose=range(100, 120), tulip=range(120, 125)))
    found = extend(known, new)
    for name, counts in {"rose": (12, 4, 4), "tulip": (3, 1, 1)}.items():
        own = [split for path, split in found.items() if path.startswith(name)]
        assert tuple(map(own.count, ("train", "val", "test"))) == counts


def test_single_new_images_come_into_every_split(known: ImageDataset, tmp_path: Path) -> None:
    """Many updates by an image each are as good as one by many."""
    found = []
    for seed in range(900, 924):
        found += extend(known, find_images(draw(tmp_path / str(seed), rose=range(seed, seed + 1)), fewest=1)).values()
    assert 9 <= found.count("train") <= 19 and found.count("val") and found.count("test")


@pytest.mark.needs("links")
def test_known_images_are_left_out(known: ImageDataset, tmp_path: Path) -> None:
    draw(tmp_path, rose=range(200, 202))
    (tmp_path / "rose" / "again.png").write_bytes((known.root / "rose" / "5.png").read_bytes())
    os.symlink(known.root / "rose" / "0.png", tmp_path / "rose" / "linked.png")
    assert extend(known, find_images(tmp_path, fewest=1)).keys() == {"rose/200.png", "rose/201.png"}


def test_near_duplicates_join_the_split_of_the_known_image(known: ImageDataset, tmp_path: Path) -> None:
    draw(tmp_path, rose=range(300, 301))
    for seed in range(6):  # scaled, saved again, some mirrored
        image = noise_image(seed).resize((80, 80))
        flipped = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if seed % 2 else image
        flipped.save(tmp_path / "rose" / f"near{seed}.jpg", quality=92)
    found = extend(known, find_images(tmp_path, fewest=1))
    assert {f"rose/near{seed}.jpg": split for seed, split in enumerate(SPLITS)}.items() <= found.items()


@pytest.mark.parametrize("copy", ["bytes", "near"])
@pytest.mark.parametrize(("seed", "wanted"), [(4, "train"), (0, "test"), (2, "train"), (5, "val")])
def test_duplicates_in_another_split_are_an_error(
    known: ImageDataset, tmp_path: Path, copy: str, seed: int, wanted: str
) -> None:
    draw(tmp_path / wanted, rose=range(400, 402))
    place = tmp_path / wanted / "rose" / "leak.png"
    if copy == "bytes":
        place.write_bytes((known.root / "rose" / f"{seed}.png").read_bytes())
    else:
        noise_image(seed).resize((120, 120)).save(place)
    new = find_images(tmp_path / wanted, fewest=1)
    new = dataclasses.replace(new, split=dict.fromkeys(new.paths, wanted))
    with pytest.raises(DataError, match=rf"leak.png \({wanted}\) belongs with rose/{seed}.png \({SPLITS[seed]}\)"):
        extend(known, new)


def test_new_duplicates_across_splits_are_an_error(known: ImageDataset, tmp_path: Path) -> None:
    draw(tmp_path, rose=range(700, 703))
    noise_image(700).resize((64, 64)).save(tmp_path / "rose" / "near.png")
    new = find_images(tmp_path, fewest=1)
    apart = dict.fromkeys(new.paths, "train") | {"rose/near.png": "test"}
    with pytest.raises(DataError, match=r"near.png \(test\) belongs with rose/700.png \(train\)"):
        extend(known, dataclasses.replace(new, split=apart))
    assert extend(known, dataclasses.replace(new, split=dict.fromkeys(new.paths, "test")))


def test_all_duplicates_in_another_split_are_named_together(known: ImageDataset, tmp_path: Path) -> None:
    draw(tmp_path, rose=range(410, 412))
    for seed in (0, 1, 2):
        noise_image(seed).resize((120, 120)).save(tmp_path / "rose" / f"near{seed}.png")
    new = find_images(tmp_path, fewest=1)
    with pytest.raises(
        DataError, match=r"near0.png \(test\) belongs with rose/0.png \(train\) and 2 more: .* --exclude"
    ):
        extend(known, dataclasses.replace(new, split=dict.fromkeys(new.paths, "test")))


def test_what_belongs_with_photos_of_several_splits_is_left_out(known: ImageDataset, tmp_path: Path) -> None:
    """An update of a run whose own splits share a patient must be possible."""
    new = find_images(draw(tmp_path, rose=range(820, 824)), fewest=1)
    groups = {path: "patient" for path in new.paths[:2]}
    found = extend(known, dataclasses.replace(new, groups=groups), {"rose/0.png": "patient", "rose/5.png": "patient"})
    assert found.keys() == set(new.paths[2:])


def test_new_duplicates_join_the_one_whose_split_is_known(known: ImageDataset, tmp_path: Path) -> None:
    draw(tmp_path, rose=range(700, 703))
    noise_image(700).resize((64, 64)).save(tmp_path / "rose" / "near.png")
    new = dataclasses.replace(find_images(tmp_path, fewest=1), split={"rose/near.png": "test"})
    found = extend(known, new)
    assert found["rose/700.png"] == found["rose/near.png"] == "test"


def test_groups_of_the_source_stay_together(known: ImageDataset, tmp_path: Path) -> None:
    new = find_images(draw(tmp_path, rose=range(800, 812)), fewest=1)
    groups = {path: f"bush{i % 2}" for i, path in enumerate(new.paths)}
    found = extend(known, dataclasses.replace(new, groups=groups), {"rose/2.png": "bush0"})
    assert {found[path] for path in new.paths[::2]} == {"val"}
    assert len({found[path] for path in new.paths[1::2]}) == 1


def test_a_known_image_with_another_class_is_an_error(known: ImageDataset, tmp_path: Path) -> None:
    draw(tmp_path, tulip=range(500, 501))
    (tmp_path / "tulip" / "x.png").write_bytes((known.root / "rose" / "5.png").read_bytes())
    with pytest.raises(DataError, match=r"tulip/x.png is rose/5.png, known as rose; fix: decide"):
        extend(known, find_images(tmp_path, fewest=1))


def test_a_new_class_is_in_every_split(known: ImageDataset, tmp_path: Path) -> None:
    draw(tmp_path, orchid=range(600, 604))
    noise_image(600).resize((64, 64)).save(tmp_path / "orchid" / "near.png")
    found = extend(known, find_images(tmp_path, fewest=1))
    assert set(found.values()) == {"train", "val", "test"} and len(found) == 5
    assert found["orchid/600.png"] == found["orchid/near.png"]
    few = draw(tmp_path / "few", lily=range(610, 612))
    with pytest.raises(DataError, match="class lily has 2 photos, too few"):
        extend(known, find_images(few, fewest=1))
