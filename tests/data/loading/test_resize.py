"""Resized images of bytes equal the result of the evaluation transform."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flowers_torch.data.augment.per_image import eval_transform
from flowers_torch.data.images import load_image
from flowers_torch.data.loading.resize import resize_transform, resized_side
from flowers_torch.data.preprocessing import Preprocessing
from flowers_torch.data.sources.demo import draw_picture
from flowers_torch.data.sources.open import open_dataset


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("stretch", [False, True])
@pytest.mark.parametrize(("width", "height"), [(500, 620), (347, 261), (90, 90), (40, 400)])
def test_resizing_without_randomness_equals_the_evaluation_transform(
    width: int, height: int, stretch: bool, interpolation: str
) -> None:
    photo = draw_picture("star", 160, np.random.default_rng(7)).resize((width, height))
    expected = eval_transform(64, (0.0,) * 3, (1.0,) * 3, interpolation, stretch=stretch)(photo) * 255
    inputs = Preprocessing(size=64, interpolation=interpolation, stretch=stretch)
    for augmentation in ("none", "mirror"):
        made = resize_transform(augmentation, inputs)(photo)
        assert made.dtype == torch.uint8 and made.shape == (3, 64, 64)
        levels = (made - expected).abs()
        assert float(levels.max()) <= 4.01 and float(levels.mean()) < 0.25


def test_only_the_middle_of_a_strip_is_used() -> None:
    photo = Image.new("RGB", (400, 10))
    photo.paste((200, 200, 200), (180, 0, 220, 10))
    side = resized_side("crop", 20)
    made = resize_transform("crop", Preprocessing(size=20))(photo)
    assert made.shape == (3, side, side) and made.eq(200).all()


def test_resized_real_photos_are_close_to_the_inputs_of_prediction(shared: Path) -> None:
    photos = open_dataset(shared / "data" / "17flowers.tgz")
    transform = eval_transform(224, (0.0,) * 3, (1.0,) * 3)
    levels = []
    for image in (load_image(photos.root / name) for name in photos.paths[::97]):
        levels.append((resize_transform("none", Preprocessing(size=224))(image) - 255 * transform(image)).abs())
    assert float(torch.stack(levels).max()) <= 4.01 and float(torch.stack(levels).mean()) < 0.02
