"""The package from Python, as short as on the command line: `train`, `load`, `predict`.

from flowers_torch import load, predict, train

result = train("my_photos", "tf_efficientnet_lite0", "offline", head_only=True)
for answer in predict(load(result.folder), "new_photos/"):
    print(answer.file, answer.classes[0], answer.probabilities[0])
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flowers_torch.config import HEAD_ONLY
from flowers_torch.config_file import load_config
from flowers_torch.deploy.classifier import Classifier, ImageSource, Prediction, find_inputs
from flowers_torch.errors import UsageError
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
    """Trains a network on photos and leaves a run folder, as `python train.py` does.

    Args:
        data: What `--data` takes: a folder, an archive, `flowers17`, `demo`, ...
        arch: A network of the zoo or of timm; empty for the recipe's own.
        weights: `imagenet`, `offline`, `none` or a file; empty for the recipe's own.
        recipe: A TOML file, or the name of one in `configs/`; empty for the one of the network or the demo.
        epochs: Of each stage, in their order.
        head_only: Fit a linear head in seconds, no more.
        out: Run folder; empty for `runs/<data>-<arch>-<n>`.
        overwrite: Let `out` hold an earlier run.
        quiet: Print the result only.
        options: Any other field of `config.py`, such as `seed=1`, or `**{"stages.finetune.lr": 1e-4}`.

    Returns:
        `folder`, the scores on the test photos (`test.accuracy`, `test.interval()`), the `history`.

    Raises:
        FlowersError: as the command's; its text says what to change.
    """
    changes: dict[str, Any] = {"weights": weights} if weights else {}
    changes |= HEAD_ONLY if head_only else {}
    changes |= {"epochs": list(epochs)} if epochs else {}
    with console(quiet):
        return train_config(load_config(arch, str(data), str(recipe), changes | options), out, overwrite)


def load(model: str | Path, device: str = "auto") -> Classifier:
    """A trained model, ready for `predict`; its network is `.model`, its class names `.record.classes`.

    Args:
        model: A run folder, or its `model.safetensors`.
        device: auto, cpu, cuda, cuda:1 or mps.

    Raises:
        ModelFileError: the file is missing, damaged or foreign.
    """
    return Classifier.load(Path(model).expanduser(), choose_runtime(device, "fp32"))


def predict(
    model: Classifier | str | Path, photos: ImageSource | Sequence[ImageSource], top: int = 3
) -> list[Prediction]:
    """What a model says of photos, an answer for each.

    Args:
        model: From `load`, or a run folder.
        photos: A file, folder, pattern or address, or several.
        top: Classes in each answer, the likeliest first.

    Returns:
        Answers in order: `file`, `classes`, `probabilities`, `reason`; `error` where a photo cannot be read.

    Raises:
        UsageError: no photos there, or `top` below 1.
    """
    if top < 1:
        raise UsageError(f"top={top} asks for no answer", "use 1 or more")
    classifier = model if isinstance(model, Classifier) else load(model)
    several = [photos] if isinstance(photos, str | Path) else photos
    return list(classifier.predict(find_inputs([str(photo) for photo in several]), top))
