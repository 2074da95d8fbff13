"""Features of many photos: from a trained classifier or a network of the zoo, by the one image path."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from flowers_torch.data.augment.per_image import eval_transform
from flowers_torch.data.images import load_image
from flowers_torch.data.preprocessing import Preprocessing
from flowers_torch.errors import UsageError, printable
from flowers_torch.models.checkpoint import load_classifier
from flowers_torch.models.factory import build_network
from flowers_torch.models.inspect.layer_features import features, module_name
from flowers_torch.models.weights import load_weights, plan_weights
from flowers_torch.training.device import Runtime


def open_network(name: str, weights: str = "", keras_input: str = "") -> tuple[nn.Module, Preprocessing, str]:
    """A trained classifier, or a network of the zoo with weights.

    Args:
        name: A run folder or model file; with `weights` the name of a network.
        weights: What `train --weights` takes; empty for a trained classifier.
        keras_input: How an .h5 file wants its photos; see `plan_weights`.

    Returns:
        The network, how it wants its photos, and what was loaded in words.

    Raises:
        UsageError: nothing of that name.
        ModelFileError: weights that cannot be used.
    """
    if weights:
        plan = plan_weights(name, weights, keras_input)
        model = build_network(name, options=plan.options)
        return model, plan.preprocessing, load_weights(model, name, plan)
    if keras_input:
        raise UsageError("--keras-input is for a Keras file", "add --weights FILE.h5")
    path = Path(name).expanduser()
    if not path.exists():
        raise UsageError(
            f"no model at {printable(name)}", "name a run folder, or add --weights to a network's name"
        )
    model, info = load_classifier(path)
    return model, info.preprocessing, f"{info.arch} from {printable(path)}"


def image_features(
    model: nn.Module,
    preprocessing: Preprocessing,
    photos: Sequence[Path],
    runtime: Runtime,
    layer: str = "",
    pooling: str = "avg",
    batch_size: int = 32,
    progress: Callable[[int], None] | None = None,
) -> Tensor:
    """Features of photos, a row each, on the CPU.

    Args:
        model: The network.
        preprocessing: How it wants its photos.
        photos: Files that can all be read.
        runtime: Device and precision.
        layer: See `models.features.features`.
        pooling: See there.
        batch_size: Photos computed at once.
        progress: Called with the number of photos done.

    Raises:
        DataError: a photo that cannot be read.
    """
    model = runtime.place(model).eval()
    transform = eval_transform(**dataclasses.asdict(preprocessing))
    layer = module_name(model, layer) if layer else ""
    parts = []
    for start in range(0, len(photos), batch_size):
        images = torch.stack([transform(load_image(p)) for p in photos[start : start + batch_size]])
        with runtime.autocast():
            parts.append(features(model, runtime.images(images), layer, pooling).float().cpu())
        if progress is not None:
            progress(start + len(images))
    return torch.cat(parts)
