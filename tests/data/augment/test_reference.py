"""The batch augmentations against torchvision's transforms of one image."""

import functools
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, v2

from flowers_torch.data.augment import per_batch
from flowers_torch.data.augment.names import BATCH_AUGMENTATIONS, COLOR, CROPS, KERAS
from flowers_torch.data.augment.per_image import LimitAspect, OneImage, ToFloats, to_input
from flowers_torch.data.loading.batches import batch_augmentation
from flowers_torch.data.loading.resize import resize_transform
from flowers_torch.data.preprocessing import Preprocessing

SIZE = 24
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def image_transform(augmentation: str) -> v2.Compose:
    """The reference: transform of an RGB `PIL.Image` to a float tensor (3, SIZE, SIZE)."""
    mode = InterpolationMode.BICUBIC
    mirror = v2.RandomHorizontalFlip()
    views: list[nn.Module]
    if augmentation in KERAS:
        move = OneImage(functools.partial(_keras_affine, KERAS[augmentation]))
        views = [v2.Resize((SIZE, SIZE), interpolation=mode), ToFloats(), move, mirror]
    elif augmentation == "alexnet":
        views = [
            LimitAspect(),
            v2.Resize(math.floor(SIZE / 0.875), interpolation=mode),
            v2.RandomCrop(SIZE),
            mirror,
            ToFloats(),
            OneImage(per_batch.shift_rgb),
            OneImage(per_batch.shift_pca_color),
        ]
    else:
        views = [v2.RandomResizedCrop(SIZE, *CROPS[augmentation], interpolation=mode), mirror]
        if augmentation == "crop":
            views.append(v2.ColorJitter(*COLOR))
    return v2.Compose([*views, *to_input(MEAN, STD)])


def _keras_affine(
    ranges: tuple[float, float, float, float], images: Tensor, generator: per_batch.SampleGenerator
) -> Tensor:
    matrices = per_batch.draw_affines(generator, images.shape[-2], images.shape[-1], *ranges)
    return per_batch.affine(images, matrices)


@pytest.mark.parametrize("augmentation", [name for name in BATCH_AUGMENTATIONS if name not in ("none", "mirror")])
def test_batches_agree_with_single_images_on_average(augmentation):
    """Mean and standard deviation of the variants of a smooth image, pixel by pixel."""
    pixels = np.random.default_rng(0).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize((72, 54), Image.Resampling.BICUBIC)
    image.paste((250, 120, 10), (0, 0, 24, 54))
    reference = image_transform(augmentation)
    torch.manual_seed(0)
    expected = torch.stack([reference(image) for _ in range(400)])
    resized = resize_transform(augmentation, Preprocessing(SIZE))(image).expand(400, -1, -1, -1).float() / 255
    generator = per_batch.SampleGenerator(0, torch.arange(400), torch.zeros(400, dtype=torch.int64))
    inputs = batch_augmentation(augmentation, SIZE)(resized, generator, torch.full((400,), 72 / 54))
    inputs = per_batch.standardize(inputs, MEAN, STD)
    spread = expected.std(0)
    assert (inputs.mean(0) - expected.mean(0)).abs().max() < 0.35 * spread.mean()
    assert abs(float(inputs.std(0).mean() / spread.mean()) - 1) < 0.08
