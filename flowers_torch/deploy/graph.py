"""The module that every export format contains: images to logits, probabilities and the OOD distance."""

import functools
import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from flowers_torch.data.augment.per_image import MAX_ASPECT, eval_transform
from flowers_torch.data.preprocessing import Preprocessing
from flowers_torch.evaluation.selective import read_ood_detector
from flowers_torch.models.checkpoint import ModelInfo
from flowers_torch.models.heads import classifier_inputs

Size = Any  # an int, or a symbolic size while the module is traced


class ExportableClassifier(nn.Module):
    """A trained network with its temperature and its out-of-distribution detector.

    The input is a batch of normalized images (N, 3, size, size); with preprocessing, a batch of upright RGB
    images of equal size (N, H, W, 3) in uint8. The result is a tuple of:
        logits (N, classes), before the temperature;
        probabilities (N, classes), softmax(logits / temperature);
        OOD distance (N,) in 0..2, if the metadata has a detector.
    """

    center: Tensor
    directions: Tensor

    def __init__(self, network: nn.Module, info: ModelInfo, with_preprocessing: bool = False) -> None:
        super().__init__()
        self.preprocess = Preprocess(info.preprocessing) if with_preprocessing else nn.Identity()
        self.network = network
        self.temperature = info.temperature
        self.preprocessing = info.preprocessing
        self.with_preprocessing = with_preprocessing
        self.outputs = ["logits", "probabilities"]
        if detector := read_ood_detector(info.selective):
            self.outputs.append("ood_distance")
            self.register_buffer("center", detector.center)
            self.register_buffer("directions", detector.directions)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        with classifier_inputs(self.network) as features:
            logits = self.network(self.preprocess(x))
        probabilities = (logits / self.temperature).softmax(1)
        if "ood_distance" not in self.outputs:
            return logits, probabilities
        direction = F.normalize(features[0] - self.center, dim=1)
        return logits, probabilities, 1 - (direction @ self.directions.T).amax(1)

    def to_input(self, image: Image.Image) -> NDArray[Any]:
        """An upright RGB image as a batch of one."""
        if self.with_preprocessing:
            return np.asarray(image)[None]
        pixels: Tensor = eval_transform(**self.preprocessing.transform_options())(image)
        return pixels[None].numpy()


class Preprocess(nn.Module):
    """The evaluation transform for uint8 images of equal size: (N, H, W, 3) to (N, 3, size, size).

    Same as `eval_transform`, except that PyTorch's or ONNX Runtime's antialiased filter replaces Pillow's.
    They differ by rounding: one gray level of 255, rarely two, and a few more in noisy tall images, whose
    columns Pillow resizes first. EXIF orientation, transparency, color profiles and pixels of more than 8 bits are
    left to the reader of the file, as in `load_image`.

    No size is compared with another, because a comparison would restrict the graph to one image shape.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.preprocessing = preprocessing
        self.register_buffer("mean", torch.tensor(preprocessing.mean)[:, None, None])
        self.register_buffer("std", torch.tensor(preprocessing.std)[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        size, pixels = self.preprocessing.size, images.permute(0, 3, 1, 2)
        resize = functools.partial(F.interpolate, mode=self.preprocessing.interpolation, antialias=True)
        if self.preprocessing.stretch:
            pixels = resize(pixels, [size, size])
        else:
            pixels = _limit_aspect(pixels)
            shorter, target = torch.sym_min(*pixels.shape[2:]), math.floor(size / self.preprocessing.crop)
            sides: list[Size] = [target * side // shorter for side in pixels.shape[2:]]
            top, left = (_half_to_even(side - size) for side in sides)
            pixels = _crop(resize(pixels, sides), top, size, left, size)
        return (pixels / 255 - self.mean) / self.std


def _limit_aspect(pixels: Tensor) -> Tensor:
    """Same as `data.augment.per_image.LimitAspect`."""
    height, width = pixels.shape[2:]
    longest = MAX_ASPECT * torch.sym_min(height, width)
    new_height, new_width = torch.sym_min(height, longest), torch.sym_min(width, longest)
    return _crop(pixels, (height - new_height) // 2, new_height, (width - new_width) // 2, new_width)


def _crop(pixels: Tensor, top: Size, height: Size, left: Size, width: Size) -> Tensor:
    rows = torch.arange(height, device=pixels.device) + top
    columns = torch.arange(width, device=pixels.device) + left
    return pixels.index_select(2, rows).index_select(3, columns)


def _half_to_even(number: Size) -> Size:
    """round(number / 2) with halves to even, as in torchvision's center crop."""
    return number // 2 + (number % 2) * ((number // 2) % 2)
