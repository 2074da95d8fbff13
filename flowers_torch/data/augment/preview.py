"""Augmented variants of images, as training sees them."""

import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from flowers_torch.data.augment.keras import KerasAugment
from flowers_torch.data.augment.names import AUGMENTATIONS, BATCH_AUGMENTATIONS, SHEAR
from flowers_torch.data.augment.per_batch import SampleGenerator
from flowers_torch.data.augment.per_image import train_transform
from flowers_torch.data.dataset import ImageDataset
from flowers_torch.data.loading.batches import batch_augmentation
from flowers_torch.data.loading.loaders import derived_seed
from flowers_torch.data.loading.resize import resize_transform
from flowers_torch.data.preprocessing import Preprocessing
from flowers_torch.data.splits.assign import split_number

GAP = 4  # pixels between the images of a sheet
# Of the Keras tutorial "Building powerful image classification models using very little data".
TUTORIAL = KerasAugment(
    40, width_shift_range=0.2, height_shift_range=0.2, shear_range=SHEAR, zoom_range=0.2, horizontal_flip=True
)
PREVIEW_AUGMENTATIONS = (*AUGMENTATIONS, "tutorial")


def variants(
    image: Image.Image, augmentation: str, size: int, count: int, seed: int = 0, mirror: bool = True
) -> list[Image.Image]:
    """Augmented variants of an RGB image, of `size` x `size` pixels. Variant i of a seed is always the same.

    The augmentation `tutorial` is Keras's own; it keeps the shape of the image. Without `mirror` no other mirrors it.
    """
    if augmentation == "tutorial":
        pixels = np.asarray(image, dtype=np.float32)
        results = [TUTORIAL(pixels, np.random.default_rng((seed, i))) for i in range(count)]
        return [Image.fromarray(np.rint(values).clip(0, 255).astype(np.uint8)) for values in results]
    if augmentation in BATCH_AUGMENTATIONS:
        resized = resize_transform(augmentation, Preprocessing(size))(image).float() / 255
        generator = SampleGenerator(seed, torch.arange(count), torch.zeros(count, dtype=torch.int64))
        aspects = torch.full((count,), image.width / image.height)
        resized = resized.expand(count, -1, -1, -1)
        inputs = batch_augmentation(augmentation, size, mirror=mirror)(resized, generator, aspects)
        return [_to_image(values) for values in inputs]
    transform = train_transform(augmentation, size, (0.0,) * 3, (1.0,) * 3, mirror=mirror)
    images = []
    with torch.random.fork_rng(devices=[]):
        for i in range(count):
            torch.manual_seed(derived_seed(seed, i))
            images.append(_to_image(transform(image).clamp(0, 1)))
    return images


def _to_image(values: Tensor) -> Image.Image:
    """An image of floats (3, H, W) in 0..1."""
    return Image.fromarray(values.mul(255).byte().permute(1, 2, 0).numpy())


def sample_by_class(dataset: ImageDataset, count: int, seed: int = 0) -> list[int]:
    """Positions of random images, one of each class in turn."""
    order = sorted(range(len(dataset)), key=lambda i: split_number(dataset.paths[i], seed))
    turn: defaultdict[int, Iterator[int]] = defaultdict(itertools.count)
    turns = sorted((next(turn[dataset.labels[i]]), dataset.labels[i], i) for i in order)
    return [index for *_, index in turns[:count]]


def contact_sheet(rows: Sequence[Sequence[Image.Image]], side: int = 160) -> Image.Image:
    """Rows of images on white, each fitted into a square of `side` pixels."""
    columns = max(len(row) for row in rows)
    step = side + GAP
    sheet = Image.new("RGB", (columns * step + GAP, len(rows) * step + GAP), "white")
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            sheet.paste(ImageOps.contain(image, (side, side)), (GAP + x * step, GAP + y * step))
    return sheet
