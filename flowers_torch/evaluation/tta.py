"""Test-time augmentation: several views of a photo, whose probabilities are averaged."""

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

VIEWS = {"none": 1, "flip": 2, "scales": 3, "crop5": 5, "crop10": 10}  # name -> views of a photo
SCALES = (1.0, 1.15, 1.3)  # of the resized photo, for "scales"
CORNER_MARGIN = 0.875  # share of the photo's side that a corner crop shows, where the network crops nothing


def view_transform(
    name: str,
    size: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    interpolation: str = "bicubic",
    crop: float = 0.875,
    stretch: bool = False,
) -> Callable[[Image.Image], Tensor]:
    """Photo to its views (V, 3, size, size); the first one of `flip` and `scales` is the evaluation's own.

    Args:
        name: Key of `VIEWS`: `none`; `flip`, the photo and its mirror image; `scales`, three sizes from which
            the centre is cut; `crop5`, four corners and the centre; `crop10`, those and their mirror images.
        size: And the others, as in `eval_transform`.
    """
    if name not in VIEWS:
        raise UsageError(f"no test-time views are called {name!r}", f"use one of {', '.join(VIEWS)}")
    plain = eval_transform(size, mean, std, interpolation, crop, stretch)
    mode = InterpolationMode(interpolation)
    values = v2.Compose(to_input(mean, std))

    def resized(side: int) -> v2.Compose:
        if stretch:
            return v2.Compose([v2.Resize((side, side), interpolation=mode, antialias=True)])
        return v2.Compose([LimitAspect(), v2.Resize(side, interpolation=mode, antialias=True)])

    if name in ("none", "flip"):

        def views(image: Image.Image) -> list[Tensor]:
            return [plain(image)]

    elif name == "scales":
        sides = [math.floor(size / (1.0 if stretch else crop) * scale) for scale in SCALES]
        enlarge = [resized(side) for side in sides[1:]]

        def views(image: Image.Image) -> list[Tensor]:
            larger = [functional.center_crop(place(image), [size, size]) for place in enlarge]
            return [plain(image), *map(values, larger)]

    else:
        whole = resized(math.floor(size / (CORNER_MARGIN if stretch or crop > CORNER_MARGIN else crop)))

        def views(image: Image.Image) -> list[Tensor]:
            return [values(part) for part in functional.five_crop(whole(image), [size, size])]

    mirrored = name in ("flip", "crop10")

    def transform(image: Image.Image) -> Tensor:
        made = torch.stack(views(image))
        return torch.cat([made, made.flip(3)]) if mirrored else made

    return transform


def collect_views(model: nn.Module, batches: Iterable[Sequence[Tensor]], runtime: Runtime) -> Predictions:
    """As `collect`, for batches of views (N, V, 3, H, W).

    Returns:
        Logarithms of the views' mean probabilities as logits; features of the first view.
    """
    views = 0

    def flattened() -> Iterator[Sequence[Tensor]]:
        nonlocal views
        for images, labels, *_ in batches:
            views = images.shape[1]
            yield images.flatten(0, 1), labels.repeat_interleave(views)

    answers = collect(model, flattened(), runtime)
    probabilities = answers.logits.double().unflatten(0, (-1, views)).softmax(2).mean(1)
    tiny = torch.finfo(torch.float32).tiny  # a probability of 0 would become a logit of -inf
    return Predictions(
        probabilities.clamp(min=tiny).log().float(),
        answers.labels[::views],
        answers.features[::views],
    )
