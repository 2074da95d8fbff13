"""Features of image files, from a trained classifier or a pretrained network."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from flowers_torch.data.augment.per_image import eval_transform
from flowers_torch.data.images import load_image
from flowers_torch.data.preprocessing import Preprocessing
from flowers_torch.errors import UsageError, printable
from flowers_torch.files.system import expand_home
from flowers_torch.models.checkpoint import load_classifier
from flowers_torch.models.inspect.layer_features import features, module_name
from flowers_torch.models.registry import build_network
from flowers_torch.models.weights import load_weights, plan_weights
from flowers_torch.training.device import Runtime


def open_network(name: str, weights: str = "", keras_input: str = "") -> tuple[nn.Module, Preprocessing, str]:
    """Loads a trained classifier, or a named network with weights; also describes what was loaded.

    Args:
        name: A run folder or model file; with `weights` (those of `train --weights`), the name of a network.
        keras_input: Preprocessing of an .h5 file.

    Raises:
        UsageError: there is no model of that name.
        ModelFileError: the weights do not fit.
    """
    if weights:
        plan = plan_weights(name, weights, keras_input)
        model = build_network(name, options=plan.options)
        return model, plan.preprocessing, load_weights(model, name, plan)
    if keras_input:
        raise UsageError("--keras-input needs a Keras file", "add --weights FILE.h5")
    path = expand_home(name)
    if not path.exists():
        raise UsageError(f"no model at {printable(name)}", "name a run folder, or add --weights to a network's name")
    model, info = load_classifier(path)
    return model, info.preprocessing, f"{info.arch} from {printable(path)}"


def image_features(
    model: nn.Module,
    preprocessing: Preprocessing,
    paths: Sequence[Path],
    runtime: Runtime,
    layer: str = "",
    pooling: str = "avg",
    batch_size: int = 32,
    progress: Callable[[int], None] | None = None,
) -> Tensor:
    """Features of image files, one row each, on the CPU; `layer` and `pooling` as in `layer_features.features`.

    `progress` is called with the number of finished images.

    Raises:
        DataError: an image cannot be read.
    """
    model = runtime.place(model).eval()
    transform = eval_transform(**preprocessing.transform_options())
    layer = module_name(model, layer) if layer else ""
    rows = []
    for start in range(0, len(paths), batch_size):
        loaded = (load_image(p, value_range=preprocessing.value_range) for p in paths[start : start + batch_size])
        images = torch.stack([transform(image) for image in loaded])
        with runtime.autocast():
            rows.append(runtime.to_host(features(model, runtime.images(images), layer, pooling).float()))
        if progress is not None:
            progress(start + len(images))
    runtime.wait()
    return torch.cat(rows)
