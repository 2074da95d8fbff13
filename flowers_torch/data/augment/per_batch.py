"""Augmentations of batches of tensors, on the CPU or the GPU.

Images are float tensors (N, 3, H, W) in 0..1. Random numbers come from a `SampleGenerator`, a function of
(seed, view, position): an image gets the same variant in any batch.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Range = tuple[float, float]
FILL_MODES = ("constant", "nearest", "reflect", "wrap")
# Principal components of ImageNet's RGB values (Krizhevsky, Sutskever, Hinton 2012), in units of 0..1.
PCA_VALUES = (0.2175, 0.0188, 0.0045)
PCA_VECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))
GRAY = (0.299, 0.587, 0.114)


class SampleGenerator:
    """Random numbers for each image, a function of seed, view, position and a counter of draws.

    `views` are passes over the dataset: one number, or one for each image (N,). `positions` in the dataset are
    integers (N,), on the device of the results.
    """

    def __init__(self, seed: int, views: int | Tensor, positions: Tensor) -> None:
        keys = positions.to(torch.int64)
        for counter in (seed, views):
            keys = _mix(keys ^ _mix(torch.zeros_like(keys) + counter))
        self.keys, self.calls = keys, 0
        self.views = torch.zeros_like(keys) + views

    def uniform(self, count: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """(N, count) floats in [low, high)."""
        steps = torch.arange(self.calls, self.calls + count, device=self.keys.device)
        self.calls += count
        bits = _mix(self.keys[:, None] ^ _mix(steps)) & 0xFFFFFF  # 24 bits fill a float's mantissa
        return bits.float() / 2**24 * (high - low) + low

    def normal(self, count: int) -> Tensor:
        """(N, count) standard normal floats, by Box and Muller."""
        radius = (-2 * torch.log(1 - self.uniform(count))).sqrt()
        return radius * torch.cos(2 * math.pi * self.uniform(count))


def _mix(x: Tensor) -> Tensor:
    """splitmix64's output function (Steele, Lea, Flood 2014) on int64, whose arithmetic wraps around."""
    x = x + -0x61C8864680B583EB
    x = (x ^ _shift(x, 30)) * -0x40A7B892E31B1A47
    x = (x ^ _shift(x, 27)) * -0x6B2FB644ECCEEE15
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)  # a logical shift; the shift of int64 copies the sign


def mirror(images: Tensor, generator: SampleGenerator, probability: float = 0.5) -> Tensor:
    """Mirrors each image with the given probability."""
    chosen = generator.uniform(1)[:, :, None, None] < probability
    return torch.where(chosen, images.flip(-1), images)


def resized_crop(
    images: Tensor, size: int, generator: SampleGenerator, scale: Range, ratio: Range, aspects: Tensor
) -> Tensor:
    """A random crop of each image, stretched to (size, size), as torchvision's `RandomResizedCrop`.

    The first of ten crops that fits is taken; if none fits, it is the largest center crop with an allowed ratio.

    Args:
        scale: Range of the crop's fraction of the area.
        ratio: Range of its width over its height, drawn by logarithm.
        aspects: (N,) width over height of the original images, which may be stretched.
    """
    wide = aspects.to(images.dtype)[:, None]  # in heights of the original image
    areas = generator.uniform(10, *scale) * wide
    ratios = generator.uniform(10, math.log(ratio[0]), math.log(ratio[1])).exp()
    heights, widths = (areas / ratios).sqrt(), (areas * ratios).sqrt()
    fits = (heights <= 1) & (widths <= wide)
    chosen = fits.int().argmax(1, keepdim=True)  # the first that fits
    any_fits = fits.any(1, keepdim=True)
    largest_height, largest_width = (wide / ratio[0]).clamp(max=1), wide.clamp(max=ratio[1])
    height = torch.where(any_fits, heights.gather(1, chosen), largest_height)
    width = torch.where(any_fits, widths.gather(1, chosen), largest_width)
    place = torch.where(any_fits, generator.uniform(2), 0.5)
    return cut(images, size, place[:, :1], place[:, 1:], height, width / wide)


def random_crop(images: Tensor, size: int, generator: SampleGenerator, fraction: float, aspects: Tensor) -> Tensor:
    """A random square of each image, `fraction` of the original's shorter side; else as `resized_crop`."""
    wide = aspects.to(images.dtype)[:, None]
    side = fraction * wide.clamp(max=1)
    place = generator.uniform(2)
    return cut(images, size, place[:, :1], place[:, 1:], side, side / wide)


def cut(images: Tensor, size: int, down: Tensor, across: Tensor, height: Tensor, width: Tensor) -> Tensor:
    """A rectangle of each image, stretched to (size, size).

    All are (N, 1) in 0..1: `down` and `across` are its place between top and bottom and between left and
    right, `height` and `width` fractions of the image's.
    """
    # grid_sample: -1 and 1 are the outer edges of the image.
    steps = (2 * torch.arange(size, device=images.device) + 1) / size
    rows = 2 * down * (1 - height) + steps * height - 1
    columns = 2 * across * (1 - width) + steps * width - 1
    grid = torch.stack(torch.broadcast_tensors(columns[:, None, :], rows[:, :, None]), dim=-1)
    return F.grid_sample(images, grid.to(images.dtype), align_corners=False, padding_mode="border")


def affine(images: Tensor, matrices: Tensor, fill_mode: str = "nearest", cval: float = 0.0) -> Tensor:
    """Transforms each image by its matrix, as Keras's `apply_affine_transform`.

    Args:
        matrices: (N, 2, 3): the source (row, column) of an output pixel (row, column, 1).
        fill_mode: What is outside of the image: "constant" is `cval`, "nearest" repeats the border, "reflect"
            mirrors the image (border pixels twice), "wrap" continues at the other side with a period of one
            less than the side, as in SciPy.
    """
    if fill_mode not in FILL_MODES:
        raise ValueError(f"{fill_mode!r} is not a valid fill mode: expected {', '.join(FILL_MODES)}")
    height, width = images.shape[-2:]
    rows, columns = torch.meshgrid(
        torch.arange(height, device=images.device), torch.arange(width, device=images.device), indexing="ij"
    )
    at = torch.einsum("nij,jhw->nihw", matrices, torch.stack([rows, columns, torch.ones_like(rows)]).float())
    rows, columns = at.unbind(1)
    outside = (rows < 0) | (rows > height - 1) | (columns < 0) | (columns > width - 1)
    rows, columns = _inside(rows, height, fill_mode), _inside(columns, width, fill_mode)
    # grid_sample: -1 and 1 are the centers of the outermost pixels.
    grid = torch.stack([columns / max(width - 1, 1), rows / max(height - 1, 1)], dim=-1) * 2 - 1
    values = F.grid_sample(images, grid.to(images.dtype), align_corners=True, padding_mode="border")
    return torch.where(outside[:, None], cval, values) if fill_mode == "constant" else values


def draw_affines(
    generator: SampleGenerator, height: int, width: int, rotation: float, shift: float, shear: float, zoom: float
) -> Tensor:
    """Random matrices (N, 2, 3) for `affine`, around the center of images of height x width.

    `rotation` and `shear` are degrees and `shift` a fraction of each side, to either side. `zoom` is z for
    factors 1 - z .. 1 + z, drawn for each axis; above 1 shows more than the image.
    """
    angle, lean = (generator.uniform(1, -d, d)[:, 0].deg2rad() for d in (rotation, shear))
    move_y, move_x = (generator.uniform(1, -shift, shift)[:, 0] * side for side in (height, width))
    zoom_y, zoom_x = (generator.uniform(1, 1 - zoom, 1 + zoom)[:, 0] for _ in range(2))
    cos, sin = angle.cos(), angle.sin()
    # rotation @ shear @ zoom in (x, y); then rows and columns are swapped
    xx, xy = cos * zoom_x, (-cos * lean.sin() - sin * lean.cos()) * zoom_y
    yx, yy = sin * zoom_x, (-sin * lean.sin() + cos * lean.cos()) * zoom_y
    middle_y, middle_x = height / 2 - 0.5, width / 2 - 0.5
    offset_y = middle_y + cos * move_y + sin * move_x - yy * middle_y - yx * middle_x
    offset_x = middle_x - sin * move_y + cos * move_x - xy * middle_y - xx * middle_x
    rows = torch.stack([yy, yx, offset_y], dim=1)
    return torch.stack([rows, torch.stack([xy, xx, offset_x], dim=1)], dim=1)


def _inside(places: Tensor, size: int, fill_mode: str) -> Tensor:
    """Maps positions outside of 0 .. size - 1 to positions inside with the same value."""
    if fill_mode == "reflect":  # at the outer edges, half a pixel beyond the outermost centers
        turned = (places + 0.5).remainder(2 * size)
        places = torch.minimum(turned, 2 * size - turned) - 0.5
    elif fill_mode == "wrap":
        beyond = (places < 0) | (places > size - 1)
        places = torch.where(beyond, places.remainder(max(size - 1, 1)), places)
    return places.clamp(0, size - 1)


def jitter_color(images: Tensor, generator: SampleGenerator, ranges: Sequence[float]) -> Tensor:
    """Multiplies brightness, contrast and saturation by random factors in 1 - x .. 1 + x."""
    return adjust_color(images, *(generator.uniform(1, 1 - x, 1 + x)[:, :, None, None] for x in ranges))


def adjust_color(images: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor) -> Tensor:
    """Multiplies by factors (N, 1, 1, 1), as torchvision's `adjust_brightness` and so on."""
    # Only the first line allocates: on a CPU, new memory costs more than the arithmetic.
    images = (images * brightness).clamp_(0, 1)
    mean = _gray(images).mean((2, 3), keepdim=True)
    images.sub_(mean).mul_(contrast).add_(mean).clamp_(0, 1)
    gray = _gray(images)
    return images.sub_(gray).mul_(saturation).add_(gray).clamp_(0, 1)


def _gray(images: Tensor) -> Tensor:
    red, green, blue = images.split(1, dim=1)
    return (red * GRAY[0]).add_(green, alpha=GRAY[1]).add_(blue, alpha=GRAY[2])


def shift_rgb(images: Tensor, generator: SampleGenerator, amount: float = 0.08) -> Tensor:
    """Adds a random value in -amount .. amount to each channel."""
    return (images + generator.uniform(3, -amount, amount)[:, :, None, None]).clamp(0, 1)


def shift_pca_color(images: Tensor, generator: SampleGenerator, std: float = 0.1) -> Tensor:
    """AlexNet's color augmentation: shifts all pixels along the principal components of RGB values."""
    values, vectors = _constant(PCA_VALUES, images.device), _constant(PCA_VECTORS, images.device)
    shifts = (generator.normal(3) * std * values) @ vectors.T
    return (images + shifts[:, :, None, None]).clamp(0, 1)


def erase(images: Tensor, generator: SampleGenerator, probability: float = 0.25) -> Tensor:
    """Fills a random rectangle of some images, 2 to 20% of the area, with their mean color (random erasing)."""
    height, width = images.shape[-2:]
    area = generator.uniform(1, 0.02, 0.2) * height * width
    aspect = generator.uniform(1, math.log(0.3), math.log(3.3)).exp()
    tall, wide = (area / aspect).sqrt().clamp(max=height), (area * aspect).sqrt().clamp(max=width)
    top, left = generator.uniform(1) * (height - tall), generator.uniform(1) * (width - wide)
    rows = torch.arange(height, device=images.device) + 0.5
    columns = torch.arange(width, device=images.device) + 0.5
    in_rows = (rows >= top) & (rows < top + tall)
    in_columns = (columns >= left) & (columns < left + wide) & (generator.uniform(1) < probability)
    inside = in_rows[:, :, None] & in_columns[:, None, :]
    return torch.where(inside[:, None], images.mean((2, 3), keepdim=True), images)


def mixup(images: Tensor, targets: Tensor, fraction: float) -> tuple[Tensor, Tensor]:
    """Blends each image and its target with those of the reversed batch (Zhang et al. 2018).

    Targets are (N, classes). `fraction` is the weight of the image itself, 0..1; see `draw_fraction`.
    """
    return torch.lerp(images.flip(0), images, fraction), torch.lerp(targets.flip(0), targets, fraction)


def draw_fraction(alpha: float, *counters: int) -> float:
    """A fraction from Beta(alpha, alpha), a function of the counters (seed, epoch, batch)."""
    return float(np.random.Generator(np.random.Philox(np.random.SeedSequence(counters))).beta(alpha, alpha))


def standardize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Subtracts the mean of the channels and divides by their deviation: the input of the network."""
    center, spread = (_constant(tuple(values), images.device)[:, None, None] for values in (mean, std))
    return (images - center).div_(spread)


@functools.cache
def _constant(values: tuple[Any, ...], device: torch.device) -> Tensor:
    """A cached tensor on the device: a new copy would wait for all pending work of a GPU."""
    with torch.inference_mode(False):
        return torch.tensor(values, device=device)
