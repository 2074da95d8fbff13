"""Augmented variants of photos as pictures: what training really sees."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageOps
from torchvision.transforms.v2 import functional

from flowers_torch.data.augment.keras import KerasAugment
from flowers_torch.data.augment.per_batch import SampleGenerator
from flowers_torch.data.augment.per_image import AUGMENTATIONS, train_transform
from flowers_torch.data.dataset import ImageDataset
from flowers_torch.data.loading.batches import BATCH_AUGMENTATIONS, batch_augmentation
from flowers_torch.data.loading.loaders import derived_seed
from flowers_torch.data.loading.resize import resize_transform
from flowers_torch.data.preprocessing import Preprocessing
from flowers_torch.data.splits.assign import split_number

GAP = 4  # pixels between the pictures of a sheet
# The parameters of the Keras tutorial "Building powerful image classification models using very little data".
TUTORIAL = KerasAugment(
    rotation_range=40,
    width_shift_range=0.2,
    height_shift_range=0.2,
    shear_range=0.2,
    zoom_range=0.2,
    horizontal_flip=True,
)
PREVIEW_AUGMENTATIONS = (*AUGMENTATIONS, "tutorial")


def variants(image: Image.Image, policy: str, size: int, count: int, seed: int = 0) -> list[Image.Image]:
    """Variants of a photo as training sees them, or under `tutorial`: Keras's own, slow and exact.

    Args:
        image: RGB.
        policy: One of `PREVIEW_AUGMENTATIONS`.
        size: Side of the results in pixels; `tutorial` keeps the photo's own shape.
        count: How many.
        seed: Variant i of a seed is always the same.
    """
    if policy == "tutorial":
        pixels = np.asarray(image, dtype=np.float32)
        made = [TUTORIAL(pixels, np.random.default_rng((seed, i))) for i in range(count)]
        return [Image.fromarray(np.rint(values).clip(0, 255).astype(np.uint8)) for values in made]
    if policy in BATCH_AUGMENTATIONS:
        canvases = (
            resize_transform(policy, Preprocessing(size))(image).expand(count, -1, -1, -1).float() / 255
        )
        draws = SampleGenerator(seed, torch.arange(count), torch.zeros(count, dtype=torch.int64))
        inputs = batch_augmentation(policy, size)(
            canvases, draws, torch.full((count,), image.width / image.height)
        )
        return [functional.to_pil_image(picture) for picture in inputs]
    transform = train_transform(policy, size, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    pictures = []
    with torch.random.fork_rng(devices=[]):
        for i in range(count):
            torch.manual_seed(derived_seed(seed, i))
            pictures.append(functional.to_pil_image(transform(image).clamp(0, 1)))
    return pictures


def sample_by_class(photos: ImageDataset, count: int, seed: int = 0) -> list[int]:
    """Positions of some photos, one of each class in turn."""
    order = sorted(range(len(photos)), key=lambda i: split_number(photos.paths[i], seed))
    turn: dict[int, int] = {}
    turns = []
    for index in order:
        label = photos.labels[index]
        turns.append((turn.setdefault(label, 0), label, index))
        turn[label] += 1
    return [index for _, _, index in sorted(turns)[:count]]


def contact_sheet(rows: Sequence[Sequence[Image.Image]], side: int = 160) -> Image.Image:
    """Pictures in rows on white, each fitted into a square of `side` pixels."""
    columns = max(len(row) for row in rows)
    step = side + GAP
    sheet = Image.new("RGB", (columns * step + GAP, len(rows) * step + GAP), "white")
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            sheet.paste(ImageOps.contain(picture, (side, side)), (GAP + x * step, GAP + y * step))
    return sheet
