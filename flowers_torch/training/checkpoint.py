"""The state of an unfinished run as one file: resuming from it repeats what would have happened."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flowers_torch.errors import ModelFileError, printable
from flowers_torch.files import safe_load, safe_save
from flowers_torch.models.classifier import load_matching
from flowers_torch.training.engine import Sums

RESUME_FILE = "resume.safetensors"


@dataclasses.dataclass
class Progress:
    """Where a run stands; everything that is not a tensor."""

    stage: int = 0  # index of the stage
    epoch: int = 0  # of the stage
    step: int = 0  # batches done in this epoch
    sums: Sums = dataclasses.field(default_factory=Sums)  # of this epoch
    seconds: float = 0.0  # spent in this epoch
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)  # a row for each finished epoch
    best: dict[str, Any] = dataclasses.field(default_factory=dict)  # the row of the best epoch


def save_progress(
    path: Path,
    progress: Progress,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
) -> None:
    """Writes network, optimiser, random state and progress, atomically."""
    tensors = {f"model/{name}": value for name, value in model.state_dict().items()}
    tensors["random/cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random/cuda"] = torch.cuda.get_rng_state()
    for name, values in _optimizer_state(optimizer).items():
        tensors |= {f"optimizer/{name}/{key}": torch.as_tensor(value) for key, value in values.items()}
    safe_save(tensors, path, {"progress": dataclasses.asdict(progress), "scaler": scaler.state_dict()})


def read_progress(path: Path) -> tuple[dict[str, Tensor], Progress, dict[str, Any]]:
    """Reads what `save_progress` wrote: tensors, progress, state of the loss scaler.

    Raises:
        ModelFileError: missing, damaged, or not a resume file.
    """
    tensors, metadata = safe_load(path)
    try:
        values = dict(metadata["progress"])
        progress = Progress(**(values | {"sums": Sums(**values["sums"])}))
    except (KeyError, TypeError) as error:
        raise ModelFileError(f"{printable(path)} is no resume file", "start a new run") from error
    return tensors, progress, metadata.get("scaler", {})


def restore_model(model: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Puts the saved weights and buffers back."""
    load_matching(model, _below("model/", tensors), path)


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Puts the saved state of each parameter back, by the parameter's name.

    Raises:
        ModelFileError: the optimiser trains other parameters than the saved one did.
    """
    saved: dict[str, dict[str, Tensor]] = {}
    for key, value in _below("optimizer/", tensors).items():
        name, _, part = key.rpartition("/")
        saved.setdefault(name, {})[part] = value
    names = [name for group in optimizer.param_groups for name in group["names"]]
    strangers = sorted(set(saved) - set(names))
    if strangers:
        raise ModelFileError(
            f"the saved optimiser trains {strangers[0]}, which this stage does not",
            "resume with the same config",
        )
    state = {index: saved[name] for index, name in enumerate(names) if name in saved}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def restore_random(tensors: dict[str, Tensor]) -> None:
    """Puts the random streams back that dropout draws from."""
    torch.set_rng_state(tensors["random/cpu"])
    if "random/cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random/cuda"])


def _optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Any]]:
    return {
        name: {key: value for key, value in optimizer.state[parameter].items() if value is not None}
        for group in optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
        if parameter in optimizer.state
    }


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
