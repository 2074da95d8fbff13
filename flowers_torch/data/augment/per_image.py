"""What happens to a photo between the image loader and the network, built from torchvision's v2 transforms.

Evaluation has exactly one transform, made from the preprocessing record that travels with the weights.
Training has a few named policies over the same record. A policy draws from torch's global generator;
`loaders.py` seeds that generator for each photo, so a policy needs no seed of its own.
"""

import functools
import math
from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, v2

from flowers_torch.data.augment import per_batch as batch_augment
from flowers_torch.data.augment.per_batch import SampleGenerator

MAX_ASPECT = 4  # of a longer strip only the middle is used: resized whole, it would fill the memory
AUGMENTATIONS = ("none", "light", "crop", "keras", "keras_zoom", "keras_shift", "alexnet", "rand", "trivial")

# What the policies draw, here and for whole batches: shares of the area and ratios of width to height of a
# part; brightness, contrast and saturation; the tutorials' rotation, shift, shear (degrees) and zoom.
CROPS = {"light": ((0.7, 1.0), (0.85, 1.18)), "crop": ((0.3, 1.0), (3 / 4, 4 / 3))}
COLOUR = (0.2, 0.2, 0.2)
KERAS = {
    "keras": (30, 0.2, 0, 0.2),  # of Flowers-17
    "keras_zoom": (0, 0, 0.2, 0.2),  # of "very little data" and the five animals
    "keras_shift": (0, 0.1, 0, 0),  # of CIFAR-10
}


def eval_transform(
    size: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    interpolation: str = "bicubic",
    crop: float = 0.875,
    stretch: bool = False,
) -> v2.Compose:
    """Photo to network input, without chance: resize, centre crop, scale, normalise.

    Args:
        size: Side of the output in pixels.
        mean: Of the channels, in units of 0..1.
        std: Of the channels, in units of 0..1.
        interpolation: "bilinear" or "bicubic", both antialiased.
        crop: Share of the resized photo's shorter side that the centre crop keeps.
        squash: Resize both sides to `size` instead, changing the aspect, as Keras's `target_size` does.

    Returns:
        Transform of an RGB `PIL.Image` to a float tensor (3, size, size).
    """
    mode = InterpolationMode(interpolation)
    if stretch:
        return v2.Compose([v2.Resize((size, size), interpolation=mode, antialias=True), *to_input(mean, std)])
    middle = ResizedCentre(math.floor(size / crop), size, Image.Resampling[interpolation.upper()])
    return v2.Compose([LimitAspect(), middle, *to_input(mean, std)])


def enough_side(size: int, crop: float) -> int:
    """Shorter side that a photo needs for an input of `size` pixels: twice what it is resized to.

    A larger JPEG may be decoded at a half of its size or less (`load_image`). The resizing behind it still
    decides what the network sees: of photos of 2 and of 12 million pixels its bytes change by 0.3 on average
    and 3 at most.
    """
    return 2 * math.floor(size / crop)


def train_transform(
    policy: str,
    size: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    interpolation: str = "bicubic",
    crop: float = 0.875,
    stretch: bool = False,
) -> v2.Compose:
    """Photo to network input under a training policy; arguments and result as `eval_transform`.

    Args:
        policy: `none` is the evaluation transform; `mirror` is for batches only (see `batches.py`). `light`
            mirrors and crops a little. `crop` mirrors, crops
            anything from 30% of the area and changes brightness, contrast and colour. `keras` does what the
            seed did: rotation up to 30 degrees, shifts up to 0.2, zoom 0.8 .. 1.2, mirror, border pixels
            repeated; `keras_zoom` and `keras_shift` are those of two other tutorials, see `KERAS`.
            `alexnet` crops anywhere, mirrors, shifts RGB and moves colours along their principal
            axes. `rand` and `trivial` are `crop` with RandAugment or TrivialAugment for the colours; `rand`
            also erases rectangles.
    """
    mode = InterpolationMode(interpolation)
    if policy == "none":
        return eval_transform(size, mean, std, interpolation, crop, stretch)
    cropped = [
        v2.RandomResizedCrop(size, *CROPS["light" if policy == "light" else "crop"], interpolation=mode),
        v2.RandomHorizontalFlip(),
    ]
    views: list[nn.Module]
    if policy == "light":
        views = cropped
    elif policy == "crop":
        views = [*cropped, v2.ColorJitter(*COLOUR)]
    elif policy in KERAS:
        views = [
            v2.Resize((size, size), interpolation=mode),
            *_to_floats(),
            OneImage(functools.partial(_keras_affine, KERAS[policy])),
            v2.RandomHorizontalFlip(),
        ]
    elif policy == "alexnet":
        views = [
            LimitAspect(),  # guard: D22
            v2.Resize(math.floor(size / crop), interpolation=mode),
            v2.RandomCrop(size),
            v2.RandomHorizontalFlip(),
            *_to_floats(),
            OneImage(batch_augment.shift_rgb),
            OneImage(batch_augment.shift_pca_colour),
        ]
    elif policy == "rand":
        views = [*cropped, v2.RandAugment(), *_to_floats(), OneImage(batch_augment.erase)]
    elif policy == "trivial":
        views = [*cropped, v2.TrivialAugmentWide()]
    else:
        raise ValueError(f"unknown augmentation policy {policy!r}; there are {', '.join(AUGMENTATIONS)}")
    return v2.Compose([*views, *to_input(mean, std)])


def _to_floats() -> list[nn.Module]:
    return [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]


def to_input(mean: tuple[float, ...], std: tuple[float, ...]) -> list[nn.Module]:
    """The part of `eval_transform` that changes values, not places: scale to 0..1, then normalise."""
    return [*_to_floats(), v2.Normalize(list(mean), list(std))]


class ResizedCentre(nn.Module):
    """The middle of an image resized with antialiasing; the pixels that would be cut off are not computed.

    As torchvision's `Resize` and `CenterCrop` in a row, but for rounding: on photos 1 of 255. (On noise more:
    Pillow may resize rows or columns first, and clips in between.)

    Args:
        shorter: Side of the resized image, in pixels.
        size: Side of the square middle, at most `shorter`.
        resample: Pillow's filter.
    """

    def __init__(self, shorter: int, size: int, resample: Image.Resampling) -> None:
        super().__init__()
        self.shorter, self.size, self.resample = shorter, size, resample

    def forward(self, image: Image.Image) -> Image.Image:
        """The middle, of any shape of image."""
        box = []  # left, top, right, bottom of the middle, in the image's own pixels
        for side in image.size:
            resized = int(self.shorter * side / min(image.size))
            start = round((resized - self.size) / 2)
            box += [start * side / resized, (start + self.size) * side / resized]
        return image.resize((self.size, self.size), self.resample, (box[0], box[2], box[1], box[3]))


class LimitAspect(nn.Module):
    """Cuts the ends off an image whose longer side is more than `MAX_ASPECT` times the shorter."""

    def forward(self, image: Image.Image) -> Image.Image:
        """The middle of a strip; any other image as it is."""
        width, height = (min(side, MAX_ASPECT * min(image.size)) for side in image.size)
        left, top = (image.width - width) // 2, (image.height - height) // 2
        return image.crop((left, top, left + width, top + height)) if (width, height) != image.size else image


class OneImage(nn.Module):
    """A function of `batch_augment.py` as a transform of one float image (C, H, W).

    Its draws follow from one number of torch's global generator.
    """

    def __init__(self, function: Callable[[Tensor, SampleGenerator], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, image: Tensor) -> Tensor:
        """Changes the image by chance."""
        seed = int(torch.randint(1 << 62, ()))
        return self.function(image[None], SampleGenerator(seed, 0, torch.zeros(1, dtype=torch.int64)))[0]


def _keras_affine(
    ranges: tuple[float, float, float, float], images: Tensor, draws: SampleGenerator
) -> Tensor:
    """Rotation, shift and zoom with the border repeated: torchvision's `RandomAffine` has no border fill."""
    matrices = batch_augment.draw_affines(draws, images.shape[-2], images.shape[-1], *ranges)
    return batch_augment.affine(images, matrices)
