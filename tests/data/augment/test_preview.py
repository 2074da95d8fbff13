"""The preview shows the augmentations, and writes only the files that it names."""

import argparse
import dataclasses

import numpy as np
import pytest
from PIL import Image

from flowers_torch.commands import preview
from flowers_torch.data.augment.keras import KerasAugment
from flowers_torch.data.augment.preview import (
    PREVIEW_AUGMENTATIONS,
    TUTORIAL,
    contact_sheet,
    sample_by_class,
    variants,
)
from flowers_torch.data.sources.folders import find_images
from flowers_torch.errors import UsageError


def image(seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((80, 60), Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path):
    for i in range(12):
        path = tmp_path / f"set/{'abc'[i % 3]}/{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image(i).save(path)
    return tmp_path / "set"


@pytest.mark.parametrize("augmentation", PREVIEW_AUGMENTATIONS)
def test_variants(augmentation):
    results = variants(image(), augmentation, 32, 4, seed=1)
    assert len(results) == 4 and {result.size for result in results} == {
        (80, 60) if augmentation == "tutorial" else (32, 32)
    }
    again = variants(image(), augmentation, 32, 4, seed=1)
    assert all(np.array_equal(a, b) for a, b in zip(results, again, strict=True))
    different = {result.tobytes() for result in results}
    assert len(different) == {"none": 1, "mirror": 2}.get(augmentation, 4)


def test_the_tutorial_s_ranges():
    """Rotation 40 degrees, shifts and zoom 0.2, shear 0.2 radians, mirror, the nearest pixel outside."""
    asked = {field.name: getattr(TUTORIAL, field.name) for field in dataclasses.fields(TUTORIAL)}
    changed = {name: value for name, value in asked.items() if value != getattr(KerasAugment(), name)}
    assert changed == {
        "rotation_range": 40,
        "width_shift_range": 0.2,
        "height_shift_range": 0.2,
        "shear_range": pytest.approx(0.2 * 180 / np.pi),
        "zoom_range": TUTORIAL.zoom_range,
        "horizontal_flip": True,
    }
    assert TUTORIAL.fill_mode == "nearest"
    zooms = [TUTORIAL.draw_affine(np.random.default_rng(seed), 10, 10).zx for seed in range(50)]
    assert 0.8 <= min(zooms) < 0.85 and 1.15 < max(zooms) <= 1.2


def test_the_choice_takes_each_class_in_turn(folder):
    dataset = find_images(folder)
    chosen = sample_by_class(dataset, 7)
    assert len(set(chosen)) == 7
    labels = [dataset.labels[i] for i in chosen]
    assert sorted(labels[:3]) == sorted(labels[3:6]) == [0, 1, 2]


def test_contact_sheet():
    red, blue = Image.new("RGB", (40, 20), "red"), Image.new("RGB", (40, 40), "blue")
    sheet = contact_sheet([[red, blue], [blue]], side=20)
    assert sheet.size == (52, 52)
    assert sheet.getpixel((5, 5)) == (255, 0, 0) and sheet.getpixel((30, 10)) == (0, 0, 255)
    assert sheet.getpixel((10, 40)) == (0, 0, 255) and sheet.getpixel((45, 45)) == (255, 255, 255)


def run(*words) -> None:
    parser = argparse.ArgumentParser()
    preview.add_arguments(parser)
    preview.run(parser.parse_args([str(word) for word in words]))


def test_the_rank_command(folder, tmp_path, capsys):
    run(folder, tmp_path / "look", "--n", 7, "--size", 48)
    names = sorted(path.name for path in (tmp_path / "look").iterdir())
    first, second = ([name for name in names if name.startswith(row)] for row in ("000_", "001_"))
    assert names == [*first, *second, "contact_sheet.jpg"] and (len(first), len(second)) == (5, 2)
    labels = [{name.removesuffix(".jpg").split("_", 2)[2] for name in row} for row in (first, second)]
    assert labels[0] | labels[1] < set("abc") and list(map(len, labels)) == [1, 1]
    assert "7 images" in capsys.readouterr().out
    with pytest.raises(UsageError, match="not empty"):
        run(folder, tmp_path / "look")
    one = next(folder.rglob("*.jpg"))
    run(one, tmp_path / "one", "--augment", "tutorial")
    assert len(list((tmp_path / "one").iterdir())) == 21


@pytest.mark.parametrize("words", [("--augment", "strong"), ("--n", "0"), ("--size", "100000")])
def test_mistakes(folder, tmp_path, words):
    with pytest.raises(UsageError, match=words[0]):
        run(folder, tmp_path / "look", *words)
