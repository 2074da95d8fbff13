"""Transforms of one image: evaluation, and the augmentations that exist for single images only.

A random transform draws from torch's global generator, which `loaders.py` seeds for each image.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from flowers_torch.data.augment.names import CROPS, IMAGE_AUGMENTATIONS
from flowers_torch.data.augment.per_batch import SampleGenerator, erase, standardize

MAX_ASPECT = 4  # longer strips are cropped to their middle: resized whole, they would fill the memory


def eval_transform(
    size: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    interpolation: str = "bicubic",
    crop: float = 0.875,
    stretch: bool = False,
) -> nn.Sequential:
    """The transform of evaluation: resize, center crop, scale to 0..1, normalize.

    It turns an RGB `PIL.Image` into a float tensor (3, size, size). The arguments are
    `Preprocessing.transform_options()`; both interpolations are antialiased.
    """
    resample = Image.Resampling[interpolation.upper()]
    if stretch:
        return nn.Sequential(Stretched(size, resample), *to_input(mean, std))
    center = ResizedCenter(math.floor(size / crop), size, resample)
    return nn.Sequential(LimitAspect(), center, *to_input(mean, std))


def enough_side(size: int, crop: float) -> int:
    """Sufficient shorter side of an image for an input of `size` pixels: twice the resized side.

    A larger JPEG may be decoded at a fraction of its size (see `load_image`). On images of 2 and 12
    megapixels this changes the bytes of the input by 0.3 on average and by 3 at most.
    """
    return 2 * math.floor(size / crop)


def train_transform(
    augmentation: str,
    size: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    interpolation: str = "bicubic",
    mirror: bool = True,
) -> nn.Sequential:
    """The transform of an augmentation of single images; arguments and result as in `eval_transform`.

    Both crop at random, and mirror unless that is off; `rand` adds RandAugment and random erasing, `trivial`
    TrivialAugment.
    """
    from torchvision.transforms import InterpolationMode, v2  # here: it takes a second, and few runs need it

    views: dict[str, list[nn.Module]] = {
        "rand": [v2.RandAugment(), ToFloats(), OneImage(erase)],
        "trivial": [v2.TrivialAugmentWide()],
    }
    if augmentation not in views:
        known = ", ".join(IMAGE_AUGMENTATIONS)
        raise ValueError(f"{augmentation!r} is not a valid augmentation of single images: expected {known}")
    cropped = v2.RandomResizedCrop(size, *CROPS["crop"], interpolation=InterpolationMode(interpolation))
    mirrored = [v2.RandomHorizontalFlip()] if mirror else []  # guard: D40 image
    return nn.Sequential(cropped, *mirrored, *views[augmentation], *to_input(mean, std))


def to_input(mean: tuple[float, ...], std: tuple[float, ...]) -> list[nn.Module]:
    """The part of `eval_transform` that changes values, not positions: scale to 0..1 and normalize."""
    return [ToFloats(), Normalize(mean, std)]


def to_bytes(image: Image.Image) -> Tensor:
    """The pixels of an RGB image as a tensor (3, H, W) of bytes, which is not contiguous."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


class ToFloats(nn.Module):
    """From an RGB image or a tensor (3, H, W) of bytes to floats in 0..1; floats stay as they are."""

    def forward(self, image: Image.Image | Tensor) -> Tensor:
        values = image if isinstance(image, Tensor) else to_bytes(image)
        return values if values.is_floating_point() else values.float().mul_(1 / 255)


class Normalize(nn.Module):
    """`standardize` of one image (3, H, W) as a module."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.mean, self.std = mean, std

    def forward(self, image: Tensor) -> Tensor:
        return standardize(image, self.mean, self.std)


class Stretched(nn.Module):
    """Resizes an image to `size` x `size` pixels with antialiasing, whatever its shape."""

    def __init__(self, size: int, resample: Image.Resampling) -> None:
        super().__init__()
        self.size, self.resample = size, resample

    def forward(self, image: Image.Image) -> Image.Image:
        return image.resize((self.size, self.size), self.resample)


class ResizedCenter(nn.Module):
    """Resize with antialiasing and center crop in one step, without computing the pixels that are cut off.

    Equals torchvision's `Resize` and `CenterCrop` up to rounding: by 1 of 255 on photos. Noise can differ
    more, because Pillow may resize rows or columns first and clips in between. `shorter` is the shorter side
    of the resized image, at least `size`, the side of the crop.
    """

    def __init__(self, shorter: int, size: int, resample: Image.Resampling) -> None:
        super().__init__()
        self.shorter, self.size, self.resample = shorter, size, resample

    def forward(self, image: Image.Image) -> Image.Image:
        box = []  # (start, end) of the crop along each side, in pixels of the image
        for side in image.size:
            resized = int(self.shorter * side / min(image.size))
            start = round((resized - self.size) / 2)
            box += [start * side / resized, (start + self.size) * side / resized]
        return image.resize((self.size, self.size), self.resample, (box[0], box[2], box[1], box[3]))


class LimitAspect(nn.Module):
    """Crops an image whose longer side is more than `MAX_ASPECT` times the shorter to its middle."""

    def forward(self, image: Image.Image) -> Image.Image:
        width, height = (min(side, MAX_ASPECT * min(image.size)) for side in image.size)
        left, top = (image.width - width) // 2, (image.height - height) // 2
        return image.crop((left, top, left + width, top + height)) if (width, height) != image.size else image


class OneImage(nn.Module):
    """A function of `per_batch.py` as a transform of one float image (C, H, W), seeded by torch's global generator."""

    def __init__(self, function: Callable[[Tensor, SampleGenerator], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, image: Tensor) -> Tensor:
        seed = int(torch.randint(1 << 62, ()))
        return self.function(image[None], SampleGenerator(seed, 0, torch.zeros(1, dtype=torch.int64)))[0]
