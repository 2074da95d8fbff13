"""Predictions for labeled image files, with the evaluation transform or averaged over several views of an image."""

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from flowers_torch.accelerate import AUTO
from flowers_torch.data.augment.per_image import LimitAspect, eval_transform, to_input
from flowers_torch.data.loading.batches import TrainingBatches, batch_augmentation
from flowers_torch.data.loading.loaders import TransformedImages, loader_settings, make_loader
from flowers_torch.data.loading.resize import resized_images
from flowers_torch.data.preprocessing import Preprocessing
from flowers_torch.evaluation.predictions import Predictions, collect
from flowers_torch.training.device import Runtime

# Test-time views and their number: `flip` is the image and its mirror image; `scales`, center crops at three
# sizes; `crop5`, the corners and the center; `crop10`, these and their mirror images.
VIEWS = {"none": 1, "flip": 2, "scales": 3, "crop5": 5, "crop10": 10}
MIRRORED_VIEWS = ("flip", "crop10")
SCALES = (1.15, 1.3)  # relative sizes of the resized image in further views, for "scales"
CORNER_CROP = 0.875  # crop fraction of corner crops if the network's own is larger


def predict_images(
    model: nn.Module,
    preprocessing: Preprocessing,
    paths: Sequence[Path],
    labels: Sequence[int],
    runtime: Runtime,
    views: str = "none",
    batch_size: int = 32,
) -> Predictions:
    """Runs a network on image files.

    Args:
        model: Network on the device of `runtime`.
        labels: Label of each file, as an index into the model's classes.
        views: Key of `VIEWS`; with several views the logits are those of the mean probability.
        batch_size: Images per forward pass, views included.
    """
    network = AUTO.training_network(model.eval(), runtime, preprocessing.size)
    images_per_batch = max(1, batch_size // VIEWS[views])
    settings = loader_settings(-1, runtime.device)
    if views != "none":
        images = TransformedImages(paths, labels, view_transform(views, preprocessing), 0, random=False)
        images.value_range = preprocessing.value_range
        loader, _ = make_loader(images, images_per_batch, shuffle=False, **settings)
        return collect_views(network, loader, VIEWS[views], runtime)
    # The path of validation during training: resized images, then the batch transform.
    images = resized_images(paths, labels, 0, "none", preprocessing)
    loader, order = make_loader(images, images_per_batch, shuffle=False, **settings)
    augmentation = batch_augmentation("none", preprocessing.size)
    mean, std = preprocessing.mean, preprocessing.std
    batches = TrainingBatches(loader, order, 0, 0, runtime.device, augmentation, mean, std)
    return collect(network, batches, runtime)


def view_transform(name: str, preprocessing: Preprocessing) -> Callable[[Image.Image], Tensor]:
    """A transform from an image to its views (V, 3, size, size); `name` is a key of `VIEWS`.

    The first view of `flip` and `scales` is the evaluation transform.
    """
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional

    size, stretch = preprocessing.size, preprocessing.stretch
    crop = 1.0 if stretch else preprocessing.crop
    plain = eval_transform(**preprocessing.transform_options())
    mode = InterpolationMode(preprocessing.interpolation)
    to_values = nn.Sequential(*to_input(preprocessing.mean, preprocessing.std))

    def resize(image: Image.Image, side: int) -> Image.Image:
        limited, sides = (image, [side, side]) if stretch else (LimitAspect()(image), [side])
        return functional.resize(limited, sides, mode, antialias=True)

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
        return torch.cat([stacked, stacked.flip(3)]) if name in MIRRORED_VIEWS else stacked

    return transform


def collect_views(model: nn.Module, batches: Iterable[Sequence[Tensor]], views: int, runtime: Runtime) -> Predictions:
    """Like `collect`, for batches of views (N, V, 3, H, W).

    Returns the logarithms of the mean probabilities as logits, and the features of the first view.
    """
    flat = ((images.flatten(0, 1), labels.repeat_interleave(views)) for images, labels, *_ in batches)
    found = collect(model, flat, runtime)
    probabilities = found.logits.double().unflatten(0, (-1, views)).softmax(2).mean(1)
    logits = probabilities.clamp(min=torch.finfo(torch.float32).tiny).log().float()  # avoids logits of -inf
    return Predictions(logits, found.labels[::views], found.features[::views])
