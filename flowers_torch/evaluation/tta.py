"""Test-time augmentation: probabilities averaged over several views of an image."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional

from flowers_torch.data.augment.per_image import LimitAspect, eval_transform, to_input
from flowers_torch.errors import UsageError
from flowers_torch.evaluation.predictions import Predictions, collect
from flowers_torch.training.device import Runtime

VIEWS = {"none": 1, "flip": 2, "scales": 3, "crop5": 5, "crop10": 10}  # name -> number of views
SCALES = (1.0, 1.15, 1.3)  # relative sizes of the resized image, for "scales"
CORNER_CROP = 0.875  # crop fraction of corner crops if the network's own is larger


def view_transform(
    name: str,
    size: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    interpolation: str = "bicubic",
    crop: float = 0.875,
    stretch: bool = False,
) -> Callable[[Image.Image], Tensor]:
    """A transform from an image to its views (V, 3, size, size).

    The first view of `flip` and `scales` is the evaluation transform.

    Args:
        name: Key of `VIEWS`: `none`; `flip`, the image and its mirror image; `scales`, center crops at three
            sizes; `crop5`, the corners and the center; `crop10`, these and their mirror images.
        size: This and the remaining arguments are those of `eval_transform`.
    """
    if name not in VIEWS:
        raise UsageError(f"{name!r} is not a valid test-time view", f"use one of {', '.join(VIEWS)}")
    plain = eval_transform(size, mean, std, interpolation, crop, stretch)
    mode = InterpolationMode(interpolation)
    values = v2.Compose(to_input(mean, std))

    def resize(side: int) -> v2.Compose:
        if stretch:
            return v2.Compose([v2.Resize((side, side), interpolation=mode, antialias=True)])
        return v2.Compose([LimitAspect(), v2.Resize(side, interpolation=mode, antialias=True)])

    if name in ("none", "flip"):

        def views(image: Image.Image) -> list[Tensor]:
            return [plain(image)]

    elif name == "scales":
        sides = [math.floor(size / (1.0 if stretch else crop) * scale) for scale in SCALES]
        resizes = [resize(side) for side in sides[1:]]

        def views(image: Image.Image) -> list[Tensor]:
            larger = [functional.center_crop(each(image), [size, size]) for each in resizes]
            return [plain(image), *map(values, larger)]

    else:
        whole = resize(math.floor(size / (CORNER_CROP if stretch or crop > CORNER_CROP else crop)))

        def views(image: Image.Image) -> list[Tensor]:
            return [values(each) for each in functional.five_crop(whole(image), [size, size])]

    mirrored = name in ("flip", "crop10")

    def transform(image: Image.Image) -> Tensor:
        stacked = torch.stack(views(image))
        return torch.cat([stacked, stacked.flip(3)]) if mirrored else stacked

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
