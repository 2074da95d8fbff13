"""The package from Python: `train`, `load` and `predict`.

from flowers_torch import load, predict, train

result = train("my_photos", "tf_efficientnet_lite0", "offline", head_only=True)
for prediction in predict(load(result.folder), "new_photos/"):
    print(prediction.file, prediction.classes[0], prediction.probabilities[0])
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flowers_torch.config import HEAD_ONLY
from flowers_torch.config_file import load_config
from flowers_torch.deploy.classifier import Classifier, ImageSource, Prediction, find_inputs
from flowers_torch.errors import UsageError
from flowers_torch.files.system import expand_home
from flowers_torch.log import console
from flowers_torch.runs.recipe import Result
from flowers_torch.runs.recipe import train as train_config
from flowers_torch.training.device import choose_runtime


def train(
    data: str | Path = "",
    arch: str = "",
    weights: str = "",
    *,
    recipe: str | Path = "",
    epochs: Sequence[int] = (),
    head_only: bool = False,
    out: str | Path = "",
    overwrite: bool = False,
    quiet: bool = False,
    **options: Any,
) -> Result:
    """Trains a network on images and writes a run folder, as `python train.py` does.

    Args:
        data: A folder, an archive, a table, `flowers17` or `demo`.
        arch: A registered network or any timm name; empty for that of the recipe.
        weights: `imagenet`, `offline`, `none` or a file; empty for those of the recipe.
        recipe: A TOML file, or the name of one in `configs/`; empty for that of the network or the demo.
        epochs: Epochs of each stage, in order.
        head_only: Fit a linear head in seconds, nothing else.
        out: Run folder, empty for `runs/<data>-<arch>-<n>`; `overwrite` lets it replace an earlier run.
        quiet: Print only the result.
        options: Any other field of `config.py`, such as `seed=1`, or `**{"stages.finetune.lr": 1e-4}`.

    Returns:
        The `folder`, the scores on the test images (`test.accuracy`, `test.interval()`) and the `history`.

    Raises:
        FlowersError: as on the command line; the text has the fix.
    """
    changes: dict[str, Any] = {"weights": weights} if weights else {}
    changes |= HEAD_ONLY if head_only else {}
    changes |= {"epochs": list(epochs)} if epochs else {}
    with console(quiet):
        return train_config(load_config(arch, str(data), str(recipe), changes | options), out, overwrite)


def load(model: str | Path, device: str = "auto") -> Classifier:
    """Loads a trained model for `predict`. Its network is `.model`, its class names are `.info.classes`.

    `model` is a run folder or its `model.safetensors`; `device` is auto, cpu, cuda, cuda:1 or mps.

    Raises:
        ModelFileError: the file is missing, damaged or not one of this package.
    """
    return Classifier.load(expand_home(model), choose_runtime(device, "fp32"))


def predict(
    model: Classifier | str | Path, images: ImageSource | Sequence[ImageSource], top: int = 3
) -> list[Prediction]:
    """Classifies images: a file, folder, glob or URL, or a sequence of them.

    Returns:
        A prediction for each image, in order: the `top` most probable `classes`, their `probabilities`, `file`,
        `reason`, and `error` if the image cannot be read.

    Raises:
        UsageError: there are no images, or `top` is below 1.
    """
    if top < 1:
        raise UsageError(f"top={top} is not valid: expected 1 or more", "use top=1")
    classifier = model if isinstance(model, Classifier) else load(model)
    several = [images] if isinstance(images, str | Path) else images
    return list(classifier.predict(find_inputs([str(image) for image in several]), top))
