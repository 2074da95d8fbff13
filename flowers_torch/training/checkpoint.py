"""The state of an unfinished run in one file, from which a run resumes as if it had not been interrupted."""

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
from flowers_torch.files.reading import check, reading
from flowers_torch.files.tensors import safe_load, safe_save
from flowers_torch.log import log
from flowers_torch.models.checkpoint import FORMAT, ModelInfo, load_matching, read_model_info, save_classifier
from flowers_torch.training.state import EpochMetrics, TrainState, read_steps

MODEL_FILE = "model.safetensors"
RESUME_FILE = "resume.safetensors"
PREVIOUS_FILE = "resume.previous.safetensors"  # the state before that one, should it be damaged
CRITERION = "val_calibrated_loss"  # of a row: chooses the weights, ends stages and decides on advice
SHORT_EPOCH_SECONDS = 30  # shorter epochs are not worth a save each: InceptionV3 takes one to two seconds

# The form of the metadata, as `check` takes it.
COUNT, SECONDS, FRACTION = (0, 1 << 40), (0.0, 1e12), (0.0, 1.0)
ROW: dict[str, Any] = {
    **{"stage": str, "epoch": COUNT, "lr?": float, "train_loss": object, "train_accuracy": FRACTION},
    **{"val_loss": object, CRITERION: object, "val_accuracy": FRACTION},
    **{"seconds": SECONDS, "images_per_second": SECONDS, "changes": COUNT},
}
STATE: dict[str, Any] = {
    **{"stage": COUNT, "epoch": COUNT, "step": COUNT, "seconds": SECONDS, "elapsed": SECONDS},
    **{"metrics": {"loss": float, "correct": COUNT, "images": COUNT}, "closing_seconds": SECONDS},
    **{"history": [object], "best": {str: object}, "changes": [{str: object}]},
}
METADATA = {"state": STATE, "scaler": {str: (0.0, 1e12)}, "micro_batch": COUNT, "fingerprint": {str: str}}

# What an optimizer needs of each parameter, besides momentum; AdamW is an Adam.
FIELDS: dict[type[torch.optim.Optimizer], set[str]] = {
    torch.optim.Adam: {"step", "exp_avg", "exp_avg_sq"},
    torch.optim.RMSprop: {"step", "square_avg"},
    torch.optim.SGD: set(),
}


@dataclasses.dataclass
class RunState:
    """Where a run is; everything that is not a tensor."""

    stage: int = 0  # index of the stage
    epoch: int = 0  # of the stage
    step: int = 0  # batches done in this epoch
    metrics: EpochMetrics = dataclasses.field(default_factory=EpochMetrics)  # of this epoch
    seconds: float = 0.0  # spent in this epoch
    elapsed: float = 0.0  # seconds of the whole run up to the newest checkpoint
    closing_seconds: float = 0.0  # of a time limit, reserved for the last validation and the test
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)  # a row for each finished epoch
    best: dict[str, Any] = dataclasses.field(default_factory=dict)  # the row of the best epoch
    changes: list[dict[str, Any]] = dataclasses.field(default_factory=list)  # made when the run was resumed

    def restart_epoch(self, change: dict[str, Any]) -> None:
        """Records a change that leads to other batches; the unfinished epoch starts again."""
        self.changes.append({"stage": self.stage, "epoch": self.epoch, **change})
        self.step, self.seconds, self.metrics = 0, 0.0, EpochMetrics()


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What `save_checkpoint` wrote, as read from disk."""

    path: Path
    tensors: dict[str, Tensor]
    state: RunState
    info: ModelInfo
    scaler: dict[str, Any]  # state of loss scaling
    micro_batch: int  # images per forward pass, which a lack of memory may have lowered
    fingerprint: dict[str, str]  # what the numbers depend on besides the images


def save_checkpoint(
    path: Path,
    state: RunState,
    info: ModelInfo,
    train: TrainState,
    fingerprint: Mapping[str, str] | None = None,
) -> None:
    """Writes network, optimizer, random state and run state atomically, and keeps the previous file."""
    tensors = {f"model/{name}": value for name, value in train.model.state_dict().items()}
    tensors["random/cpu"] = torch.get_rng_state()
    device = train.runtime.device
    if device.type == "cuda":
        tensors["random/cuda"] = torch.cuda.get_rng_state(device)
    for name, values in _optimizer_state(train.optimizer).items() if train.optimizer else ():
        tensors |= {f"optimizer/{name}/{key}": torch.as_tensor(value) for key, value in values.items()}
    if train.average:
        tensors |= {f"average/{name}": value for name, value in train.average.state_dict().items()}
    metadata = {
        "format": FORMAT,  # guard: C13 state
        "flowers_torch": __version__,
        "state": dataclasses.asdict(state),
        "model_info": dataclasses.asdict(info),
        "scaler": train.scaler.state_dict(),
        "micro_batch": train.micro_batch,
        "fingerprint": dict(fingerprint or {}),
    }
    safe_save(tensors, path, metadata, previous=path.with_name(PREVIOUS_FILE))  # guard: C21


def read_checkpoint(path: Path) -> Checkpoint:
    """Reads what `save_checkpoint` wrote.

    Raises:
        ModelFileError: missing, damaged, or not a checkpoint of a run.
    """
    tensors, metadata = safe_load(path)
    with reading(path, "a checkpoint of a run", ModelFileError, "start a new run"):
        values = metadata["state"]
        info = read_model_info(metadata, path)
        check(metadata, METADATA)  # guard: S8 state
        state = RunState(**(values | {"metrics": EpochMetrics(**values["metrics"])}))
        for row in [*state.history, *filter(None, [state.best])]:
            check_row(row)
        if state.epoch > len(state.history):  # guard: S8 epoch
            raise ValueError(f"it is in epoch {state.epoch} after {len(state.history)}")
        rest = (metadata[name] for name in ("scaler", "micro_batch", "fingerprint"))
        return Checkpoint(path, tensors, state, info, *rest)


def check_row(row: Any) -> None:
    """Raises ValueError or TypeError unless a value from a file is a row of the history."""
    check(row, ROW, "a row of the history")  # guard: S8 row
    for loss in ("train_loss", "val_loss", CRITERION):
        math.isnan(row[loss])  # a number, which need not be finite


def read_newest_checkpoint(folder: Path) -> Checkpoint:
    """The newest valid checkpoint of a run. The log names newer ones that are damaged.

    Raises:
        ModelFileError: the folder holds none.
    """
    damaged: ModelFileError | None = None
    for path in checkpoint_files(folder):
        try:
            checkpoint = read_checkpoint(path)
        except ModelFileError as error:
            log.warning(f"WARNING  {str(error).partition('; fix: ')[0]}")
            damaged = error  # guard: R23
            continue
        if damaged:
            log.warning(f"WARNING  resuming from the checkpoint before {path.name}; later work is repeated")
        return checkpoint
    raise damaged or ModelFileError(f"{printable(folder)} holds no checkpoint", "start a new run")


def checkpoint_files(folder: Path) -> list[Path]:
    """The checkpoints of a run, the newest first."""
    return [path for path in (folder / RESUME_FILE, folder / PREVIOUS_FILE) if path.is_file()]


def restore_model(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Loads the saved weights and buffers."""
    load_matching(model, _below("model/", checkpoint.tensors), checkpoint.path)


def restore_train_state(train: TrainState, checkpoint: Checkpoint) -> None:
    """Restores what a stage has gathered: optimizer state by parameter name, average, random streams.

    Raises:
        ModelFileError: the stage trains other parameters than the saved one, or the file does not fit it.
    """
    with reading(checkpoint.path, "a checkpoint of this stage", ModelFileError, "start a new run"):
        _restore_train_state(train, checkpoint)


def _restore_train_state(train: TrainState, checkpoint: Checkpoint) -> None:
    states: dict[str, dict[str, Tensor]] = {}
    for key, value in _below("optimizer/", checkpoint.tensors).items():
        name, _, field = key.rpartition("/")
        states.setdefault(name, {})[field] = value
    optimizer = train.optimizer
    names = [name for group in optimizer.param_groups for name in group["names"]]
    unknown = sorted(set(states) - set(names))
    if unknown:  # guard: R24
        what = f"{printable(checkpoint.path)} trains {unknown[0]}, which this stage does not"
        raise ModelFileError(what, "resume with the same configuration")
    needed = next(fields for kind, fields in FIELDS.items() if isinstance(optimizer, kind))
    needed = needed | ({"momentum_buffer"} if any(group.get("momentum") for group in optimizer.param_groups) else set())
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state = {
        index: {field: _in_layout_of(parameters[index], value) for field, value in states[name].items()}
        for index, name in enumerate(names)
        if name in states
    }
    for index, found in state.items():
        shapes = {field: () if field == "step" else parameters[index].shape for field in found}
        # guard: S8 optimizer
        if not needed <= found.keys() or any(value.shape != shapes[field] for field, value in found.items()):
            raise ValueError(f"the optimizer's state of {names[index]} is not complete, or of another shape")
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    if train.average:
        average = _below("average/", checkpoint.tensors)
        if average.keys() != train.average.state_dict().keys():
            what = f"{printable(checkpoint.path)} holds no moving average of this network"
            raise ModelFileError(what, "resume with the same configuration")
        train.average.load_state_dict(average)
    if checkpoint.scaler:
        train.scaler.load_state_dict(checkpoint.scaler)
    # guard: R10
    train.micro_batch = min(filter(None, (train.micro_batch, checkpoint.micro_batch)), default=0)
    torch.set_rng_state(checkpoint.tensors["random/cpu"])
    device = train.runtime.device
    if device.type == "cuda" and "random/cuda" in checkpoint.tensors:
        torch.cuda.set_rng_state(checkpoint.tensors["random/cuda"], device)


class Checkpointer:
    """Decides when to write to the run folder, and writes the best weights first, then the checkpoint.

    In this order a resumed run always finds the best weights. In the other order it could not return to an
    epoch whose weights were never written.

    Args:
        state: State of the run, updated at the end of each epoch.
        minutes: Between two checkpoints within an epoch.
        fingerprint: What the numbers depend on besides the images.
        writes: Whether this process writes; with several processes only the main one does.
    """

    def __init__(
        self,
        folder: Path,
        state: RunState,
        info: ModelInfo,
        minutes: float,
        fingerprint: Mapping[str, str] | None = None,
        writes: bool = True,
    ) -> None:
        self.folder, self.state, self.info, self.minutes = folder, state, info, minutes
        self.fingerprint, self.writes = fingerprint, writes
        self.unsaved_best: dict[str, Tensor] | None = None  # the best weights, until they are written
        self.last_save = time.monotonic()

    def end_epoch(self, row: dict[str, Any], model: nn.Module) -> None:
        """Adds the row of a finished epoch to the history, and keeps its weights if they are the best."""
        state = self.state
        state.history.append(row)
        if is_better(row, state.best):
            state.best = row
            self.unsaved_best = {name: value.detach().clone() for name, value in model.state_dict().items()}
        state.epoch, state.step, state.seconds, state.metrics = state.epoch + 1, 0, 0.0, EpochMetrics()

    def save_if_due(self, train: TrainState, force: bool = False) -> None:
        """Saves when forced, when the last checkpoint is old, or at the end of an epoch that took a while.

        It does not save while steps have not been read: all processes read after the same step, but each has
        its own clock.
        """
        if train.pending:
            return
        age = time.monotonic() - self.last_save
        epoch_ended = self.state.step == 0 and age > SHORT_EPOCH_SECONDS
        if force or epoch_ended or age > 60 * self.minutes:
            self.save(train)

    def save(self, train: TrainState) -> None:
        """Writes the best weights if they are new, then a checkpoint.

        Raises:
            ResourceError: the disk is full, or the folder is gone. Earlier files stay as they were.
            DivergedError: a step that had not been read failed. Earlier files stay as they were.
        """
        read_steps(train)  # guard: R06 later
        if not self.writes:
            return
        self._check_folder()
        if self.unsaved_best is not None:
            save_classifier(self.unsaved_best, self.info, self.folder / MODEL_FILE, best=self.state.best)
            self.unsaved_best = None
        write_csv(self.folder / "history.csv", self.state.history)
        self.state.elapsed += time.monotonic() - self.last_save
        self.last_save = time.monotonic()
        save_checkpoint(self.folder / RESUME_FILE, self.state, self.info, train, self.fingerprint)

    def check_space(self, train: TrainState) -> None:
        """Checks before a stage begins whether its checkpoints fit on the disk.

        Raises:
            ResourceError: says how much space is missing.
        """
        if not self.writes:
            return
        self._check_folder()
        weights = sum(value.nbytes for value in train.model.state_dict().values())
        trained = sum(p.nbytes for group in train.optimizer.param_groups for p in group["params"])
        size = weights * (2 if train.average else 1) + 2 * trained  # no optimizer here keeps more
        used = sum(path.stat().st_size for path in self.folder.glob("*.safetensors"))
        needed = 3 * size + weights - used  # two checkpoints, one that is being written, the best weights
        free = shutil.disk_usage(self.folder).free
        if free < needed:  # guard: C16 disk
            what = f"{printable(self.folder)} needs {needed / 1e6:,.0f} MB more for its checkpoints"
            fix = "free space, or choose another folder with --out"
            raise ResourceError(f"{what}, and {free / 1e6:,.0f} MB are free there", fix)

    def _check_folder(self) -> None:
        if not self.folder.is_dir():  # not created again: it may have been on a disk that is gone
            what = f"the run folder {printable(self.folder)} is gone"
            raise ResourceError(what, "check its disk, then start a new run")

    def best_weights(self) -> Mapping[str, Tensor]:
        """The best weights so far, from memory or from the folder."""
        return self.unsaved_best or safe_load(self.folder / MODEL_FILE)[0]


def is_better(row: dict[str, Any], best: dict[str, Any]) -> bool:
    """Whether an epoch beats the best one so far, by calibrated validation loss. NaN never does.

    The loss is used rather than the accuracy: on a few hundred images the accuracy moves in steps of several
    tenths of a percent that are mostly chance. It is calibrated, because so are the final predictions: with
    mixup and label smoothing the plain loss measures how modest a network is more than how good it is.
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


def _in_layout_of(parameter: Tensor, value: Tensor) -> Tensor:
    """The value in the parameter's memory layout, which fused optimizers assume without a check."""
    if value.shape != parameter.shape:
        return value
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
