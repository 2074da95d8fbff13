"""The state of an unfinished run as one file: resuming from it repeats what would have happened."""

import dataclasses
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flowers_torch.errors import ModelFileError, printable
from flowers_torch.files import safe_load, safe_save, write_csv
from flowers_torch.models.classifier import Record, load_matching, read_record, save_classifier
from flowers_torch.training.engine import Sums, Training

MODEL_FILE = "model.safetensors"
RESUME_FILE = "resume.safetensors"
SHORT_EPOCH_SECONDS = 10  # epochs shorter than this are not worth a save each


@dataclasses.dataclass
class Progress:
    """Where a run stands; everything that is not a tensor."""

    stage: int = 0  # index of the stage
    epoch: int = 0  # of the stage
    step: int = 0  # batches done in this epoch
    sums: Sums = dataclasses.field(default_factory=Sums)  # of this epoch
    seconds: float = 0.0  # spent in this epoch
    elapsed: float = 0.0  # seconds of the whole run up to the newest save
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)  # a row for each finished epoch
    best: dict[str, Any] = dataclasses.field(default_factory=dict)  # the row of the best epoch
    # Changes of the photos between two resumed parts of the run, each with how many and where it happened.
    data_changes: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def begin_epoch_on_other_photos(self, counts: dict[str, int]) -> None:
        """Notes that the photos changed; the unfinished epoch, whose order is of no use now, starts anew."""
        self.data_changes.append({"stage": self.stage, "epoch": self.epoch, **counts})
        self.step, self.seconds, self.sums = 0, 0.0, Sums()


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
    training: Training,
) -> None:
    """Writes network, optimiser, random state and progress, atomically."""
    tensors = {f"model/{name}": value for name, value in training.model.state_dict().items()}
    tensors["random/cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random/cuda"] = torch.cuda.get_rng_state()
    for name, values in _optimizer_state(training.optimizer).items():
        tensors |= {f"optimizer/{name}/{key}": torch.as_tensor(value) for key, value in values.items()}
    if training.average:
        tensors |= {f"average/{name}": value for name, value in training.average.state_dict().items()}
    if training.penalty:
        tensors |= {f"start/{name}": value for name, value in training.penalty.start.items()}
    metadata = {"progress": dataclasses.asdict(progress), "record": dataclasses.asdict(record)}
    safe_save(tensors, path, metadata | {"scaler": training.scaler.state_dict()})


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


def restore_training(training: Training, saved: Saved) -> None:
    """Puts back what a stage has gathered: optimiser state by parameter name, average, random streams.

    Raises:
        ModelFileError: the stage trains other parameters than the saved one did.
    """
    states: dict[str, dict[str, Tensor]] = {}
    for key, value in _below("optimizer/", saved.tensors).items():
        name, _, part = key.rpartition("/")
        states.setdefault(name, {})[part] = value
    optimizer = training.optimizer
    names = [name for group in optimizer.param_groups for name in group["names"]]
    strangers = sorted(set(states) - set(names))
    if strangers:
        raise ModelFileError(
            f"{printable(saved.path)} trains {strangers[0]}, which this stage does not",
            "resume with the same config",
        )
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state = {
        index: {part: _laid_out_like(parameters[index], value) for part, value in states[name].items()}
        for index, name in enumerate(names)
        if name in states
    }
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    if training.average:
        load_matching(training.average, _below("average/", saved.tensors), saved.path)
    if training.penalty:
        for name, start in _below("start/", saved.tensors).items():
            training.penalty.start[name].copy_(start)
    training.scaler.load_state_dict(saved.scaler)
    torch.set_rng_state(saved.tensors["random/cpu"])
    if "random/cuda" in saved.tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(saved.tensors["random/cuda"])


class Saver:
    """Decides when to write to the run folder, and writes: the best weights, then the state to resume from.

    In this order, because a resumed run finds the same best weights again, but could not go back to an epoch
    whose weights were never written.

    Args:
        folder: The run folder.
        progress: The run's progress; updated at each end of an epoch.
        record: Of the network.
        minutes: Between two saves within an epoch.
    """

    def __init__(self, folder: Path, progress: Progress, record: Record, minutes: float) -> None:
        self.folder, self.progress, self.record, self.minutes = folder, progress, record, minutes
        self.best_weights: dict[str, Tensor] | None = None  # not yet written
        self.last_save = time.monotonic()

    def end_epoch(self, row: dict[str, Any], model: nn.Module) -> None:
        """Counts an epoch as done: its row joins the history, its weights are kept if they are the best."""
        progress = self.progress
        progress.history.append(row)
        if is_better(row, progress.best):
            progress.best = row
            self.best_weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
        progress.epoch, progress.step, progress.seconds, progress.sums = progress.epoch + 1, 0, 0.0, Sums()

    def save_if_due(self, training: Training, force: bool = False) -> None:
        """Saves when forced, when the last save is old, or at the end of an epoch that took a while."""
        age = time.monotonic() - self.last_save
        epoch_ended = self.progress.step == 0 and age > SHORT_EPOCH_SECONDS
        if force or epoch_ended or age > 60 * self.minutes:
            self.save(training)

    def save(self, training: Training) -> None:
        """Writes the best weights where they are new, then the state to resume from."""
        if self.best_weights is not None:
            save_classifier(self.best_weights, self.record, self.folder / MODEL_FILE, best=self.progress.best)
            self.best_weights = None
        write_csv(self.folder / "history.csv", self.progress.history)
        self.progress.elapsed += time.monotonic() - self.last_save
        self.last_save = time.monotonic()
        save_progress(self.folder / RESUME_FILE, self.progress, self.record, training)

    def best_so_far(self) -> Mapping[str, Tensor]:
        """The best weights, from memory or from the folder."""
        return self.best_weights or safe_load(self.folder / MODEL_FILE)[0]


def is_better(row: dict[str, Any], best: dict[str, Any]) -> bool:
    """Whether an epoch beats the best so far: by validation loss, where NaN never is best.

    By loss rather than accuracy: on a few hundred photos accuracy moves in steps of several tenths of a
    percent that are mostly luck.
    """
    return math.isfinite(row["val_loss"]) and (not best or bool(row["val_loss"] < best["val_loss"]))


def _optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Any]]:
    return {
        name: {key: value for key, value in optimizer.state[parameter].items() if value is not None}
        for group in optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
        if parameter in optimizer.state
    }


def _laid_out_like(parameter: Tensor, value: Tensor) -> Tensor:
    """The value in the parameter's memory layout, which fused optimisers take for granted without a check."""
    if value.shape != parameter.shape:
        return value
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
