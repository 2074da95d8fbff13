"""Transforms of one image, and what all augmentations have in common."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from flowers_torch.data.augment import per_batch as batch_augment
from flowers_torch.data.augment.names import AUGMENTATIONS, IMAGE_AUGMENTATIONS
from flowers_torch.data.augment.per_batch import SampleGenerator
from flowers_torch.data.augment.per_image import (
    LimitAspect,
    OneImage,
    ResizedCenter,
    eval_transform,
    train_transform,
)
from flowers_torch.data.augment.preview import variants
from flowers_torch.data.loading.resize import RESIZE_FACTORS, resize_transform
from flowers_torch.data.preprocessing import Preprocessing

NEUTRAL = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def image(width: int = 90, height: int = 60) -> Image.Image:
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, (x + y) / 2], axis=2).astype(np.uint8))


def test_evaluation_takes_the_center_and_normalizes():
    inputs = eval_transform(40, (0.5, 0.5, 0.5), (0.25, 0.5, 1.0), crop=0.8)(image())
    assert inputs.shape == (3, 40, 40) and inputs.dtype == torch.float32
    plain = eval_transform(40, **NEUTRAL, crop=0.8)(image())
    torch.testing.assert_close(inputs[0], (plain[0] - 0.5) / 0.25)
    torch.testing.assert_close(inputs[2], plain[2] - 0.5)
    # 60 pixels become 50, of which the middle 40 remain: 10% are cut off above and below.
    assert abs(float(plain[1, 0].mean()) - 0.1) < 0.02 and abs(float(plain[1, -1].mean()) - 0.9) < 0.02
    stretched = eval_transform(40, **NEUTRAL, stretch=True)(image())
    assert stretched[0, :, 0].max() < 0.03 and stretched[0, :, -1].min() > 0.97


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("shape", [(500, 375), (333, 500), (100, 101), (640, 170), (37, 30)])
def test_the_center_is_that_of_the_resized_image(shape, interpolation):
    whole = v2.Compose([v2.Resize(256, InterpolationMode(interpolation), antialias=True), v2.CenterCrop(224)])
    expected = np.asarray(whole(image(*shape)), dtype=int)
    middle = ResizedCenter(256, 224, Image.Resampling[interpolation.upper()])(image(*shape))
    assert np.abs(np.asarray(middle, dtype=int) - expected).max() <= 1


@pytest.mark.parametrize("size", [(1, 1), (1, 10_000), (10_000, 1), (3000, 7)])
@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_any_shape_becomes_an_input(size, augmentation):
    (result,) = variants(Image.new("RGB", size, (80, 90, 100)), augmentation, 24, 1)
    assert result.size == (24, 24) and result.mode == "RGB"
    inputs = eval_transform(24, **NEUTRAL)(Image.new("RGB", size))
    assert inputs.shape == (3, 24, 24) and bool(torch.isfinite(inputs).all())


def test_only_the_middle_of_a_strip_is_used():
    wide = Image.new("RGB", (10_000, 10))
    assert LimitAspect()(wide).size == (40, 10) and LimitAspect()(image()).size == (90, 60)
    wide.paste((255, 0, 0), (4990, 0, 5010, 10))
    inputs = eval_transform(32, **NEUTRAL)(wide)
    assert inputs[0, :, 16].min() > 0.9


@pytest.mark.parametrize("augmentation", ["none", "alexnet"])
def test_a_strip_is_never_resized_whole(augmentation, monkeypatch):
    """10,000 x 2 pixels resized to 36 on the shorter side would be 6.5 million pixels."""
    sizes, interpolate = [], torch.nn.functional.interpolate
    monkeypatch.setattr(
        torch.nn.functional,
        "interpolate",
        lambda pixels, sides, **options: sizes.append(sides) or interpolate(pixels, sides, **options),
    )
    transform = resize_transform(augmentation, Preprocessing(32))
    assert transform(Image.new("RGB", (10_000, 2))).shape[0] == 3
    assert sizes and all(width * height <= 42 * 42 * 4 for width, height in sizes)


@pytest.mark.parametrize("augmentation", IMAGE_AUGMENTATIONS)
def test_augmentations_are_functions_of_the_seed(augmentation):
    transform = train_transform(augmentation, 32, **NEUTRAL)

    def view(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return transform(image())

    views = [view(seed) for seed in range(8)]
    assert torch.equal(views[3], view(3))
    assert sum(torch.allclose(v, views[0], atol=1e-3) for v in views) <= 5
    assert all(-1e-5 <= v.min() and v.max() <= 1 + 1e-5 for v in views)


def test_every_augmentation_has_one_form():
    assert set(RESIZE_FACTORS) | set(IMAGE_AUGMENTATIONS) == set(AUGMENTATIONS)


def test_unknown_augmentation():
    with pytest.raises(ValueError, match="expected rand, trivial"):
        train_transform("strong", 32, **NEUTRAL)


def test_one_image_is_a_batch_of_one():
    image = torch.rand(3, 9, 9)
    torch.manual_seed(4)
    single = OneImage(batch_augment.shift_rgb)(image)
    torch.manual_seed(4)
    seed = int(torch.randint(1 << 62, ()))
    batched = batch_augment.shift_rgb(image[None], SampleGenerator(seed, 0, torch.zeros(1, dtype=torch.int64)))
    assert torch.equal(single, batched[0]) and not torch.equal(single, image)
