"""Test-time augmentation: probabilities averaged over several views of an image."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional

from flowers_torch.data.augment.per_image import LimitAspect, eval_transform, to_input
from flowers_torch.data.preprocessing import Preprocessing
from flowers_torch.errors import UsageError
from flowers_torch.evaluation.predictions import Predictions, collect
from flowers_torch.training.device import Runtime

VIEWS = {"none": 1, "flip": 2, "scales": 3, "crop5": 5, "crop10": 10}  # name -> number of views
SCALES = (1.15, 1.3)  # relative sizes of the resized image in further views, for "scales"
CORNER_CROP = 0.875  # crop fraction of corner crops if the network's own is larger


def view_transform(name: str, preprocessing: Preprocessing) -> Callable[[Image.Image], Tensor]:
    """A transform from an image to its views (V, 3, size, size).

    The first view of `flip` and `scales` is the evaluation transform.

    Args:
        name: Key of `VIEWS`: `none`; `flip`, the image and its mirror image; `scales`, center crops at three
            sizes; `crop5`, the corners and the center; `crop10`, these and their mirror images.
        preprocessing: Preprocessing of the network.
    """
    if name not in VIEWS:
        raise UsageError(f"{name!r} is not a valid test-time view", f"use one of {', '.join(VIEWS)}")
    size, stretch = preprocessing.size, preprocessing.stretch
    crop = 1.0 if stretch else preprocessing.crop
    plain = eval_transform(**dataclasses.asdict(preprocessing))
    mode = InterpolationMode(preprocessing.interpolation)
    to_values = v2.Compose(to_input(preprocessing.mean, preprocessing.std))

    def resize(image: Image.Image, side: int) -> Image.Image:
        if stretch:
            return functional.resize(image, [side, side], mode, antialias=True)
        return functional.resize(LimitAspect()(image), [side], mode, antialias=True)

    def transform(image: Image.Image) -> Tensor:
        if name.startswith("crop"):
            whole = resize(image, math.floor(size / min(crop, CORNER_CROP)))
            views = [to_values(view) for view in functional.five_crop(whole, [size, size])]
        else:
            views = [plain(image)]
        if name == "scales":
            larger = (resize(image, math.floor(size / crop * scale)) for scale in SCALES)
            views += [to_values(functional.center_crop(each, [size, size])) for each in larger]
        stacked = torch.stack(views)
        return torch.cat([stacked, stacked.flip(3)]) if name in ("flip", "crop10") else stacked

    return transform


def collect_views(model: nn.Module, batches: Iterable[Sequence[Tensor]], runtime: Runtime) -> Predictions:
    """Like `collect`, for batches of views (N, V, 3, H, W).

    Returns:
        Logarithms of the mean probabilities as logits, and the features of the first view.
    """
    views = 0

    def flattened() -> Iterator[Sequence[Tensor]]:
        nonlocal views
        for images, labels, *_ in batches:
            views = images.shape[1]
            yield images.flatten(0, 1), labels.repeat_interleave(views)

    predictions = collect(model, flattened(), runtime)
    probabilities = predictions.logits.double().unflatten(0, (-1, views)).softmax(2).mean(1)
    tiny = torch.finfo(torch.float32).tiny  # avoids logits of -inf
    return Predictions(
        probabilities.clamp(min=tiny).log().float(),
        predictions.labels[::views],
        predictions.features[::views],
    )
