"""From an image to the resized square of bytes that a whole batch is augmented from.

Bytes are resized as a tensor in a third of Pillow's time. The result differs from that of the evaluation
transform by at most 4 of 255 on photos, and by 0.02 on average.
"""

import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from flowers_torch.data.augment.names import KERAS
from flowers_torch.data.augment.per_image import LimitAspect, enough_side, to_bytes
from flowers_torch.data.loading.loaders import TransformedImages
from flowers_torch.data.preprocessing import Preprocessing

# Side of the resized image over side of the input. Where an augmentation crops, the smallest crops are
# enlarged a little and the largest ones are reduced a little.
RESIZE_FACTORS = {"none": 1.0, "mirror": 1.0, "light": 1.2, "crop": 1.4, "alexnet": 1.3}
RESIZE_FACTORS |= dict.fromkeys(KERAS, 1.0)
AS_PREDICTED = ("none", "mirror")  # augmentations of images that are cropped as for prediction


def resize_transform(augmentation: str, preprocessing: Preprocessing) -> Callable[[Image.Image], Tensor]:
    """A transform from an image to bytes (3, side, side) for a key of `RESIZE_FACTORS`.

    `none` and `mirror` crop as the evaluation transform does; the others stretch an image that is not square.
    """
    size, interpolation = preprocessing.size, preprocessing.interpolation
    as_predicted = augmentation in AS_PREDICTED
    if as_predicted and not preprocessing.stretch:
        return functools.partial(_center_crop, math.floor(size / preprocessing.crop), size, interpolation)
    return functools.partial(_whole, resized_side(augmentation, size), interpolation, not as_predicted)


def resized_images(
    paths: Sequence[Path], labels: Sequence[int], seed: int, augmentation: str, preprocessing: Preprocessing
) -> TransformedImages:
    """Images resized for a batch augmentation; see `TransformedImages`."""
    transform = resize_transform(augmentation, preprocessing)
    enough = enough_side(resized_side(augmentation, preprocessing.size), preprocessing.crop)
    images = TransformedImages(paths, labels, transform, seed, random=False, at_least=enough)
    images.value_range = preprocessing.value_range
    return images


def resized_side(augmentation: str, size: int) -> int:
    """Side in pixels of the resized images of an augmentation, for inputs of a size."""
    return math.ceil(size * RESIZE_FACTORS[augmentation])


def _whole(side: int, interpolation: str, limit_aspect: bool, image: Image.Image) -> Tensor:
    return _resized((side, side), interpolation, LimitAspect()(image) if limit_aspect else image)


def _center_crop(shorter: int, size: int, interpolation: str, image: Image.Image) -> Tensor:
    """The center of an image resized to a shorter side, cropped as the evaluation transform crops it."""
    image = LimitAspect()(image)  # guard: D22
    width, height = (int(shorter * side / min(image.size)) for side in image.size)
    left, top = (round((side - size) / 2) for side in (width, height))
    return _resized((height, width), interpolation, image)[:, top : top + size, left : left + size]


def _resized(sides: tuple[int, int], interpolation: str, image: Image.Image) -> Tensor:
    return F.interpolate(to_bytes(image)[None], sides, mode=interpolation, antialias=True)[0]
