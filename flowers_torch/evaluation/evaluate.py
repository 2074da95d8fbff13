"""A network's answers to labelled photos, through the one evaluation transform or several views."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from flowers_torch.data.augment import enough_side, eval_transform
from flowers_torch.data.loaders import PhotoDataset, choose_reading, make_loader
from flowers_torch.evaluation.answers import Answers, collect
from flowers_torch.evaluation.views import VIEWS, collect_views, view_transform
from flowers_torch.models.zoo import Preprocessing
from flowers_torch.training.runtime import Runtime


def answer_photos(
    model: nn.Module,
    preprocessing: Preprocessing,
    paths: Sequence[Path],
    labels: Sequence[int],
    runtime: Runtime,
    views: str = "none",
    batch_size: int = 32,
) -> Answers:
    """Runs the network over photos.

    Args:
        model: On the device of `runtime`.
        preprocessing: Of the model's record.
        paths: Files.
        labels: Of the files, as the model counts its classes.
        runtime: Device and precision.
        views: Key of `VIEWS`; other than `none` the logits are those of the mean probability.
        batch_size: Pictures computed at once.
    """
    keywords = dataclasses.asdict(preprocessing)
    if views == "none":
        enough = enough_side(preprocessing.size, preprocessing.crop)
        photos = PhotoDataset(paths, labels, eval_transform(**keywords), 0, draws=False, at_least=enough)
    else:
        photos = PhotoDataset(paths, labels, view_transform(views, **keywords), 0, draws=False)
    at_once, how = max(1, batch_size // VIEWS[views]), choose_reading(-1, runtime.device)
    loader, _ = make_loader(photos, at_once, shuffle=False, **how)
    network = runtime.fused(model.eval(), preprocessing.size)
    return (collect if views == "none" else collect_views)(network, loader, runtime)
