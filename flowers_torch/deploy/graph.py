"""What an exported model computes: from photos or network inputs to logits, probabilities and strangeness.

One module for every format, so that an .onnx, a .pt2 and the page in a browser answer alike.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowers_torch.data.augment.per_image import MAX_ASPECT
from flowers_torch.data.preprocessing import Preprocessing
from flowers_torch.evaluation.selective import read_ood_detector
from flowers_torch.models.checkpoint import ModelInfo

Size = Any  # an int, or one that is not known before the graph runs


class ExportableClassifier(nn.Module):
    """A trained network as it is exported.

    Takes network inputs (N, 3, size, size), normalised as the record says; with `photos` upright RGB photos
    of one size (N, H, W, 3) as bytes, as `numpy.asarray(image)[None]` gives them.

    Returns a tuple of:
        logits (N, classes), as validation computed them, before the temperature;
        probabilities (N, classes), softmax(logits / temperature), as `predict` states them;
        strangeness (N,), 0 .. 2, how unlike the training photos, where the record knows what those were like.

    Args:
        network: In inference mode.
        record: Of the network.
        photos: Whether preparing the photos is part of it.
    """

    centre: Tensor
    directions: Tensor

    def __init__(self, network: nn.Module, info: ModelInfo, photos: bool = False) -> None:
        super().__init__()
        self.prepare = Prepare(info.preprocessing) if photos else nn.Identity()
        self.network = network
        self.temperature = info.temperature
        self.preprocessing = info.preprocessing
        self.photos = photos
        familiar = read_ood_detector(info.selective)
        self.knows = familiar is not None
        if familiar is not None:
            self.register_buffer("centre", familiar.centre)
            self.register_buffer("directions", familiar.directions)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        seen: list[Tensor] = []
        classifier: nn.Module = self.network.get_classifier()  # type: ignore[operator]
        hook = classifier.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        try:
            logits = self.network(self.prepare(x))
        finally:
            hook.remove()
        probabilities = (logits / self.temperature).softmax(1)
        if not self.knows:
            return logits, probabilities
        direction = F.normalize(seen[0].flatten(1) - self.centre, dim=1)
        return logits, probabilities, 1 - (direction @ self.directions.T).amax(1)

    @property
    def outputs(self) -> list[str]:
        """Names of what comes out."""
        return ["logits", "probabilities", "strangeness"][: 3 if self.knows else 2]


class Prepare(nn.Module):
    """The evaluation transform on bytes of photos (N, H, W, 3) of one size: (N, 3, size, size).

    It is `data.augment.eval_transform` but for one thing: the photo is resized by PyTorch's or ONNX Runtime's
    antialiased filter on bytes, not by Pillow's. The three round differently, by one grey level of 255,
    two at most (some more in the noise of tall photos, whose columns Pillow resizes first); docs/export.md
    has what was measured. A photo's EXIF orientation, transparency and colour space are for the reader of
    the file to deal with, as `data.images.load_image` does.

    Places are computed without comparing sizes, which would bind the graph to photos of one shape.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.preprocessing = preprocessing
        self.register_buffer("mean", torch.tensor(preprocessing.mean)[:, None, None])
        self.register_buffer("std", torch.tensor(preprocessing.std)[:, None, None])

    def forward(self, photos: Tensor) -> Tensor:
        size, pixels = self.preprocessing.size, photos.permute(0, 3, 1, 2)
        if self.preprocessing.stretch:
            pixels = self._resize(pixels, size, size)
        else:
            pixels = _middle_of_strip(pixels)
            height: Size
            width: Size
            height, width = pixels.shape[2:]
            shorter, target = torch.sym_min(height, width), math.floor(size / self.preprocessing.crop)
            height, width = target * height // shorter, target * width // shorter
            pixels = self._resize(pixels, height, width)
            pixels = _cut(pixels, _half_to_even(height - size), size, _half_to_even(width - size), size)
        return (pixels / 255 - self.mean) / self.std

    def _resize(self, pixels: Tensor, height: int, width: int) -> Tensor:
        mode = self.preprocessing.interpolation
        return F.interpolate(pixels, (height, width), mode=mode, antialias=True)


def _middle_of_strip(pixels: Tensor) -> Tensor:
    """As `data.augment.LimitAspect`."""
    height, width = pixels.shape[2:]
    longest = MAX_ASPECT * torch.sym_min(height, width)
    kept_height, kept_width = torch.sym_min(height, longest), torch.sym_min(width, longest)
    return _cut(pixels, (height - kept_height) // 2, kept_height, (width - kept_width) // 2, kept_width)


def _cut(pixels: Tensor, top: Size, height: Size, left: Size, width: Size) -> Tensor:
    rows = torch.arange(height, device=pixels.device) + top
    columns = torch.arange(width, device=pixels.device) + left
    return pixels.index_select(2, rows).index_select(3, columns)


def _half_to_even(number: Size) -> Size:
    """number / 2, rounded as torchvision's centre crop rounds it: Python's way, a half to the even side."""
    return number // 2 + (number % 2) * ((number // 2) % 2)
