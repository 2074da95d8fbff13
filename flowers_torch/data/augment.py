"""What happens to a photo between the image loader and the network, built from torchvision's v2 transforms.

Evaluation has exactly one transform, made from the preprocessing record that travels with the weights.
Training has a few named policies over the same record. A policy draws from torch's global generator;
`loaders.py` seeds that generator for each photo, so a policy needs no seed of its own.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, v2

POLICIES = ("none", "light", "crop", "keras")


def eval_transform(
    size: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    interpolation: str = "bicubic",
    crop: float = 0.875,
    squash: bool = False,
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
    if squash:
        place = [v2.Resize((size, size), interpolation=mode, antialias=True)]
    else:
        shorter = math.floor(size / crop)
        place = [v2.Resize(shorter, interpolation=mode, antialias=True), v2.CenterCrop(size)]
    return v2.Compose([*place, *_to_input(mean, std)])


def train_transform(
    policy: str,
    size: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    interpolation: str = "bicubic",
    crop: float = 0.875,
    squash: bool = False,
) -> v2.Compose:
    """Photo to network input under a training policy; arguments and result as `eval_transform`.

    Args:
        policy: `none` is the evaluation transform. `light` mirrors and crops a little. `crop` mirrors, crops
            anything from 30% of the area and changes brightness, contrast and colour. `keras` does what the
            seed did: rotation up to 30 degrees, shifts up to 0.2, zoom 0.8 .. 1.2, mirror, border pixels
            repeated.
    """
    mode = InterpolationMode(interpolation)
    if policy == "none":
        return eval_transform(size, mean, std, interpolation, crop, squash)
    if policy == "light":
        views = [
            v2.RandomResizedCrop(size, scale=(0.7, 1.0), ratio=(0.85, 1.18), interpolation=mode),
            v2.RandomHorizontalFlip(),
        ]
    elif policy == "crop":
        views = [
            v2.RandomResizedCrop(size, scale=(0.3, 1.0), interpolation=mode),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2),
        ]
    elif policy == "keras":
        views = [
            v2.Resize((size, size), interpolation=mode),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            RandomKerasAffine(rotation=30, shift=0.2, zoom=0.2),
            v2.RandomHorizontalFlip(),
        ]
    else:
        raise ValueError(f"unknown augmentation policy {policy!r}; there are {', '.join(POLICIES)}")
    return v2.Compose([*views, *_to_input(mean, std)])


def _to_input(mean: tuple[float, ...], std: tuple[float, ...]) -> list[nn.Module]:
    return [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(mean), list(std))]


class RandomKerasAffine(nn.Module):
    """Random rotation, shift and zoom with the border repeated, after Keras's `ImageDataGenerator`.

    Rotation is uniform within plus and minus `rotation` degrees, shifts within plus and minus `shift` of a
    side, zoom is drawn for each axis within 1 - `zoom` .. 1 + `zoom` and, as in Keras, a zoom above 1 shows
    more than the photo. torchvision's `RandomAffine` has no border fill, hence this one.
    """

    def __init__(self, rotation: float, shift: float, zoom: float) -> None:
        super().__init__()
        self.rotation, self.shift, self.zoom = rotation, shift, zoom

    def forward(self, image: Tensor) -> Tensor:
        """Moves one float image (C, H, W)."""
        draw = torch.rand(5).mul(2).sub(1).tolist()
        angle = math.radians(self.rotation * draw[0])
        shift_x, shift_y = (2 * self.shift * d for d in draw[1:3])  # the grid's side is 2 long
        zoom_x, zoom_y = (1 + self.zoom * d for d in draw[3:5])
        height, width = image.shape[-2:]
        aspect = height / width
        # Where each output pixel is read from, in grid units; the aspect keeps a rotation rigid.
        matrix = torch.tensor(
            [
                [math.cos(angle) * zoom_x, -math.sin(angle) * zoom_y * aspect, shift_x],
                [math.sin(angle) * zoom_x / aspect, math.cos(angle) * zoom_y, shift_y],
            ]
        )
        grid = F.affine_grid(matrix[None], [1, *image.shape], align_corners=False)
        return F.grid_sample(image[None], grid, padding_mode="border", align_corners=False)[0]
