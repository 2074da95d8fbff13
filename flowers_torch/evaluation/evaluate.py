"""A network's answers to labelled photos, through the one evaluation transform or several views."""

import dataclasses
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
    """Runs the network over photos.

    Args:
        model: On the device of `runtime`.
        preprocessing: Of the model's record.
        paths: Files.
        labels: Of the files, as the model counts its classes.
        runtime: Device and precision.
        views: Key of `VIEWS`; other than `none` the logits are those of the mean probability.
        batch_size: Images of a batch.
        acceleration: The tricks in use.
    """
    network = acceleration.training_network(model.eval(), runtime, preprocessing.size)
    at_once, how = max(1, batch_size // VIEWS[views]), loader_settings(-1, runtime.device)
    if views != "none":
        transform = view_transform(views, **dataclasses.asdict(preprocessing))
        photos = TransformedImages(paths, labels, transform, 0, random=False)
        loader, _ = make_loader(photos, at_once, shuffle=False, **how)
        return collect_views(network, loader, runtime)
    # By way of canvases, as in the run that trained it.
    photos = resized_images(paths, labels, 0, "none", preprocessing)
    loader, order = make_loader(photos, at_once, shuffle=False, **how)
    augment = batch_augmentation("none", preprocessing.size)
    batches = TrainingBatches(
        loader, order, 0, 0, runtime.device, augment, preprocessing.mean, preprocessing.std
    )
    return collect(network, batches, runtime)
