"""The state of an unfinished run as one file: resuming from it repeats what would have happened."""

import dataclasses
import math
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flowers_torch import __version__
from flowers_torch.errors import ModelFileError, ResourceError, printable
from flowers_torch.files.atomic import write_csv
from flowers_torch.files.tensors import safe_load, safe_save
from flowers_torch.log import log
from flowers_torch.models.checkpoint import FORMAT, ModelInfo, load_matching, read_model_info, save_classifier
from flowers_torch.training.state import EpochMetrics, TrainState, read_steps

MODEL_FILE = "model.safetensors"
RESUME_FILE = "resume.safetensors"
PREVIOUS_FILE = "resume.previous.safetensors"  # the state before that one, should it be damaged
CRITERION = "val_calibrated_loss"  # of a row: chooses the weights, ends stages and decides on advice
SHORT_EPOCH_SECONDS = 10  # epochs shorter than this are not worth a save each


@dataclasses.dataclass
class RunState:
    """Where a run stands; everything that is not a tensor."""

    stage: int = 0  # index of the stage
    epoch: int = 0  # of the stage
    step: int = 0  # batches done in this epoch
    sums: EpochMetrics = dataclasses.field(default_factory=EpochMetrics)  # of this epoch
    seconds: float = 0.0  # spent in this epoch
    elapsed: float = 0.0  # seconds of the whole run up to the newest save
    closing_seconds: float = 0.0  # of a limited time, kept for the last validation and the test
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)  # a row for each finished epoch
    best: dict[str, Any] = dataclasses.field(default_factory=dict)  # the row of the best epoch
    # What was changed between two parts of the run, each with where the run stood.
    changes: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def restart_epoch(self, change: dict[str, Any]) -> None:
        """Notes a change that makes other batches; an unfinished epoch begins anew."""
        self.changes.append({"stage": self.stage, "epoch": self.epoch, **change})
        self.step, self.seconds, self.sums = 0, 0.0, EpochMetrics()


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A run's state as read from disk."""

    path: Path
    tensors: dict[str, Tensor]
    progress: RunState
    info: ModelInfo  # of the network
    scaler: dict[str, Any]  # state of the loss scaling
    micro_batch: int  # photos through the network at once, which lack of memory may have lowered
    facts: dict[str, str]  # what the numbers depend on besides the photos


def save_checkpoint(
    path: Path,
    progress: RunState,
    info: ModelInfo,
    training: TrainState,
    facts: Mapping[str, str] | None = None,
) -> None:
    """Writes network, optimiser, random state and progress, atomically; the file of before is kept beside.

    Args:
        path: The file.
        progress: Where the run stands.
        record: Of the network.
        training: The stage's objects.
        facts: What the numbers depend on besides the photos, for a later comparison.
    """
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
    metadata = {
        "format": FORMAT,  # guard: C13 state
        "flowers_torch": __version__,
        "progress": dataclasses.asdict(progress),
        "model_info": dataclasses.asdict(info),
        "scaler": training.scaler.state_dict(),
        "micro_batch": training.micro_batch,
        "facts": dict(facts or {}),
    }
    safe_save(tensors, path, metadata, previous=path.with_name(PREVIOUS_FILE))  # guard: C21


def read_checkpoint(path: Path) -> Checkpoint:
    """Reads what `save_checkpoint` wrote.

    Raises:
        ModelFileError: missing, damaged, or not a resume file.
    """
    tensors, metadata = safe_load(path)
    if "progress" not in metadata:
        raise ModelFileError(f"{printable(path)} is no resume file", "start a new run")
    info = read_model_info(metadata, path)
    try:
        values = dict(metadata["progress"])
        progress = RunState(**(values | {"sums": EpochMetrics(**values["sums"])}))
        return Checkpoint(
            path, tensors, progress, info, metadata["scaler"], metadata["micro_batch"], metadata["facts"]
        )
    except (KeyError, TypeError) as error:
        raise ModelFileError(f"{printable(path)} is no resume file", "start a new run") from error


def read_newest_checkpoint(folder: Path) -> Checkpoint:
    """The newest state of a run that is whole. Where that is not the newest of all, the log says so.

    Raises:
        ModelFileError: the folder holds none.
    """
    damaged: ModelFileError | None = None
    for path in checkpoint_files(folder):
        try:
            saved = read_checkpoint(path)
        except ModelFileError as error:
            log.warning(f"WARNING  {str(error).partition('; fix: ')[0]}")
            damaged = error  # guard: R23
            continue
        if damaged:
            log.warning(
                f"WARNING  going on from the state before that; what came after {path.name} is done again"
            )
        return saved
    raise damaged or ModelFileError(f"{printable(folder)} holds no saved state", "start the run anew")


def checkpoint_files(folder: Path) -> list[Path]:
    """The files of a run to go on from, the newest first."""
    return [path for path in (folder / RESUME_FILE, folder / PREVIOUS_FILE) if path.is_file()]


def restore_model(model: nn.Module, saved: Checkpoint) -> None:
    """Puts the saved weights and buffers back."""
    load_matching(model, _below("model/", saved.tensors), saved.path)


def restore_train_state(training: TrainState, saved: Checkpoint) -> None:
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
    if strangers:  # guard: R24
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
    if saved.scaler:
        training.scaler.load_state_dict(saved.scaler)
    # guard: R10
    training.micro_batch = min(filter(None, (training.micro_batch, saved.micro_batch)), default=0)
    torch.set_rng_state(saved.tensors["random/cpu"])
    if "random/cuda" in saved.tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(saved.tensors["random/cuda"])


class Checkpointer:
    """Decides when to write to the run folder, and writes: the best weights, then the state to resume from.

    In this order, because a resumed run finds the same best weights again, but could not go back to an epoch
    whose weights were never written.

    Args:
        folder: The run folder.
        progress: The run's progress; updated at each end of an epoch.
        record: Of the network.
        minutes: Between two saves within an epoch.
        facts: What the numbers depend on besides the photos; goes into the state.
        writes: Whether this process does; of several only the main one.
    """

    def __init__(
        self,
        folder: Path,
        progress: RunState,
        info: ModelInfo,
        minutes: float,
        facts: Mapping[str, str] | None = None,
        writes: bool = True,
    ) -> None:
        self.folder, self.progress, self.info, self.minutes = folder, progress, info, minutes
        self.facts, self.writes = facts, writes
        self.best_weights: dict[str, Tensor] | None = None  # not yet written
        self.last_save = time.monotonic()

    def end_epoch(self, row: dict[str, Any], model: nn.Module) -> None:
        """Counts an epoch as done: its row joins the history, its weights are kept if they are the best."""
        progress = self.progress
        progress.history.append(row)
        if is_better(row, progress.best):
            progress.best = row
            self.best_weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
        progress.epoch, progress.step, progress.seconds, progress.sums = (
            progress.epoch + 1,
            0,
            0.0,
            EpochMetrics(),
        )

    def save_if_due(self, training: TrainState, force: bool = False) -> None:
        """Saves when forced, when the last save is old, or at the end of an epoch that took a while.

        While steps wait to be read it does not: all processes read after the same one, but each has a clock.
        """
        if training.pending:
            return
        age = time.monotonic() - self.last_save
        epoch_ended = self.progress.step == 0 and age > SHORT_EPOCH_SECONDS
        if force or epoch_ended or age > 60 * self.minutes:
            self.save(training)

    def save(self, training: TrainState) -> None:
        """Writes the best weights where they are new, then the state to resume from.

        Raises:
            ResourceError: the disk is full, or the folder is gone; what was saved before is as it was.
            DivergedError: one of the steps that were not yet read failed; likewise.
        """
        read_steps(training)
        if not self.writes:
            return
        self._check_folder()
        if self.best_weights is not None:
            save_classifier(self.best_weights, self.info, self.folder / MODEL_FILE, best=self.progress.best)
            self.best_weights = None
        write_csv(self.folder / "history.csv", self.progress.history)
        self.progress.elapsed += time.monotonic() - self.last_save
        self.last_save = time.monotonic()
        save_checkpoint(self.folder / RESUME_FILE, self.progress, self.info, training, self.facts)

    def check_space(self, training: TrainState) -> None:
        """Finds out before a stage begins whether its saves will fit on the disk.

        Raises:
            ResourceError: says how much is missing.
        """
        if not self.writes:
            return
        self._check_folder()
        weights = sum(value.nbytes for value in training.model.state_dict().values())
        trained = sum(p.nbytes for group in training.optimizer.param_groups for p in group["params"])
        state = weights * (2 if training.average else 1) + 2 * trained  # no optimiser here keeps more
        there = sum(path.stat().st_size for path in self.folder.glob("*.safetensors"))
        # Two states and one that is being written, and the best weights.
        needed = 3 * state + weights - there
        free = shutil.disk_usage(self.folder).free
        if free < needed:  # guard: C16 disk
            raise ResourceError(
                f"{printable(self.folder)} needs {needed / 1e6:,.0f} MB more for its saved states,"
                f" and {free / 1e6:,.0f} MB are free there",
                "free space, or choose another folder with --out",
            )

    def _check_folder(self) -> None:
        if not self.folder.is_dir():  # not made anew: it may have been on a disk that is not there any more
            raise ResourceError(
                f"the run folder {printable(self.folder)} is gone", "look at its disk; start anew"
            )

    def best_so_far(self) -> Mapping[str, Tensor]:
        """The best weights, from memory or from the folder."""
        return self.best_weights or safe_load(self.folder / MODEL_FILE)[0]


def is_better(row: dict[str, Any], best: dict[str, Any]) -> bool:
    """Whether an epoch beats the best so far: by calibrated validation loss, where NaN never is best.

    By loss rather than accuracy: on a few hundred photos accuracy moves in steps of several tenths of a
    percent that are mostly luck. Calibrated, because that is how the weights will answer: under mixed photos
    and smoothed labels the bare loss tells more about how modest an epoch's network is than how good.
    """
    loss = row[CRITERION]
    return math.isfinite(loss) and (not best or bool(loss < best[CRITERION]))  # guard: R08


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
