"""Predictions for labeled image files, with the evaluation transform or with test-time views."""

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from flowers_torch.accelerate import AUTO, Acceleration
from flowers_torch.data.loading.batches import TrainingBatches, batch_augmentation
from flowers_torch.data.loading.loaders import TransformedImages, loader_settings, make_loader
from flowers_torch.data.loading.resize import resized_images
from flowers_torch.data.preprocessing import Preprocessing
from flowers_torch.evaluation.predictions import Predictions, collect
from flowers_torch.evaluation.tta import VIEWS, collect_views, view_transform
from flowers_torch.training.device import Runtime


def predict_images(
    model: nn.Module,
    preprocessing: Preprocessing,
    paths: Sequence[Path],
    labels: Sequence[int],
    runtime: Runtime,
    views: str = "none",
    batch_size: int = 32,
    acceleration: Acceleration = AUTO,
) -> Predictions:
    """Runs a network on image files.

    Args:
        model: Network on the device of `runtime`.
        preprocessing: Preprocessing of the network.
        paths: Image files.
        labels: Label of each file, as an index into the model's classes.
        runtime: Device and precision.
        views: Key of `VIEWS`; with several views the logits are those of the mean probability.
        batch_size: Images per forward pass, views included.
        acceleration: Tricks that make it faster.
    """
    network = acceleration.training_network(model.eval(), runtime, preprocessing.size)
    images_per_batch = max(1, batch_size // VIEWS[views])
    settings = loader_settings(-1, runtime.device)
    if views != "none":
        transform = view_transform(views, preprocessing)
        images = TransformedImages(paths, labels, transform, 0, random=False)
        loader, _ = make_loader(images, images_per_batch, shuffle=False, **settings)
        return collect_views(network, loader, runtime)
    # The path of validation during training: resized images, then the batch transform.
    images = resized_images(paths, labels, 0, "none", preprocessing)
    loader, order = make_loader(images, images_per_batch, shuffle=False, **settings)
    augmentation = batch_augmentation("none", preprocessing.size)
    mean, std = preprocessing.mean, preprocessing.std
    batches = TrainingBatches(loader, order, 0, 0, runtime.device, augmentation, mean, std)
    return collect(network, batches, runtime)
