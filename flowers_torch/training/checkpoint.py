"""The state of an unfinished run as one file: resuming from it repeats what would have happened."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flowers_torch.errors import ModelFileError, printable
from flowers_torch.files import safe_load, safe_save
from flowers_torch.models.classifier import Record, load_matching, read_record
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


@dataclasses.dataclass(frozen=True)
class Saved:
    """A run's state as read from disk."""

    path: Path
    tensors: dict[str, Tensor]
    progress: Progress
    record: Record  # of the network
    scaler: dict[str, Any]  # state of the loss scaling


def save_progress(
    path: Path,
    progress: Progress,
    record: Record,
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
    metadata = {"progress": dataclasses.asdict(progress), "record": dataclasses.asdict(record)}
    safe_save(tensors, path, metadata | {"scaler": scaler.state_dict()})


def read_progress(path: Path) -> Saved:
    """Reads what `save_progress` wrote.

    Raises:
        ModelFileError: missing, damaged, or not a resume file.
    """
    tensors, metadata = safe_load(path)
    try:
        values = dict(metadata["progress"])
        progress = Progress(**(values | {"sums": Sums(**values["sums"])}))
    except (KeyError, TypeError) as error:
        raise ModelFileError(f"{printable(path)} is no resume file", "start a new run") from error
    return Saved(path, tensors, progress, read_record(metadata, path), metadata.get("scaler", {}))


def restore_model(model: nn.Module, saved: Saved) -> None:
    """Puts the saved weights and buffers back."""
    load_matching(model, _below("model/", saved.tensors), saved.path)


def restore_optimizer(optimizer: torch.optim.Optimizer, saved: Saved) -> None:
    """Puts the saved state of each parameter back, by the parameter's name.

    Raises:
        ModelFileError: the optimiser trains other parameters than the saved one did.
    """
    states: dict[str, dict[str, Tensor]] = {}
    for key, value in _below("optimizer/", saved.tensors).items():
        name, _, part = key.rpartition("/")
        states.setdefault(name, {})[part] = value
    names = [name for group in optimizer.param_groups for name in group["names"]]
    strangers = sorted(set(states) - set(names))
    if strangers:
        raise ModelFileError(
            f"the saved optimiser trains {strangers[0]}, which this stage does not",
            "resume with the same config",
        )
    state = {index: states[name] for index, name in enumerate(names) if name in states}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def restore_random(saved: Saved) -> None:
    """Puts the random streams back that dropout draws from."""
    torch.set_rng_state(saved.tensors["random/cpu"])
    if "random/cuda" in saved.tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(saved.tensors["random/cuda"])


def _optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Any]]:
    return {
        name: {key: value for key, value in optimizer.state[parameter].items() if value is not None}
        for group in optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
        if parameter in optimizer.state
    }


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
