"""What training steps change, what a step returns, and the sums of an epoch.

A GPU computes ahead as long as nobody reads a number from it. The outputs of some steps therefore stay on the
GPU until they are read together. Nothing is saved before they are read.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from flowers_torch.errors import DivergedError, PeerLostError
from flowers_torch.training.device import Runtime
from flowers_torch.training.distributed import SINGLE_PROCESS, Distributed

MAX_SKIPPED_STEPS = 20  # in a row, by loss scaling, which starts with some


@dataclasses.dataclass
class EpochMetrics:
    """Sums over the images of an epoch so far; means are taken once, at its end."""

    loss: float = 0.0
    correct: int = 0
    images: int = 0

    @property
    def mean_loss(self) -> float:
        return self.loss / max(1, self.images)

    @property
    def accuracy(self) -> float:
        return self.correct / max(1, self.images)


@dataclasses.dataclass(frozen=True)
class StepOutput:
    """What a step computed. Its numbers are on the device: reading one waits for the step."""

    # Over all processes: mean loss without penalties, correct predictions, images. Of this process: its loss,
    # and whether its gradient was finite.
    numbers: Tensor
    lr: float
    describe: Callable[[], str]  # where the step was, for an error's text

    @property
    def loss(self) -> float:
        """Mean loss of the batch without penalties."""
        return float(self.numbers[0])

    @property
    def correct(self) -> int:
        """Images that were classified correctly."""
        return int(self.numbers[1])


@dataclasses.dataclass
class TrainState:
    """The objects of a stage that a training step works on and changes; it has no behavior of its own."""

    model: nn.Module
    optimizer: Any  # a torch.optim.Optimizer; None where the head is fitted, so that no step is taken
    scaler: torch.amp.GradScaler
    runtime: Runtime
    class_weights: Tensor | None = None
    label_smoothing: float = 0.0
    clip_grad: float = 0.0
    micro_batch: int = 0  # images per forward pass; 0: the whole batch. Running out of memory halves it
    penalty: Callable[[nn.Module], Tensor] | None = None
    average: AveragedModel | None = None
    distributed: Distributed = SINGLE_PROCESS
    # What a step calls instead of the model: its head on cached features, DDP's wrapper, or a faster form.
    network: nn.Module | None = None
    compiled: Callable[[Tensor], Any] | None = None  # calls `network`, compiled
    seed: int = 0  # of dropout, with several processes
    skipped: int = 0  # steps in a row that loss scaling has skipped
    read_interval: int = 1  # steps between two readings; 1 checks each step before its update
    searches_kernels: bool = True  # whether cuDNN times its kernels for full batches
    pending: list[StepOutput] = dataclasses.field(default_factory=list)  # outputs that have not been read
    metrics: EpochMetrics = dataclasses.field(default_factory=EpochMetrics)  # receives them

    @property
    def evaluated(self) -> nn.Module:
        """The network to validate and to save: the moving average where there is one."""
        return self.average.module if self.average else self.model


def read_steps(state: TrainState) -> None:
    """Waits for the steps that have not been read and adds their numbers to the metrics.

    Every process has to call this after the same step.

    Raises:
        DivergedError: a step failed. The error names the first one.
    """
    pending, state.pending = state.pending, []
    if not pending:
        return
    rows = torch.stack([output.numbers for output in pending]).tolist()
    for output, row in zip(pending, rows, strict=True):
        if state.read_interval > 1:  # otherwise it was checked before its update
            check_step(state, output, row)
        loss, correct, images, *_ = row
        state.metrics.loss += loss * images
        state.metrics.correct += int(correct)
        state.metrics.images += int(images)


def check_step(state: TrainState, output: StepOutput, numbers: Sequence[float]) -> None:
    """Raises an error for a step that must not be taken."""
    loss, _, _, own_loss, finite_gradient = numbers
    if math.isfinite(own_loss) and not math.isfinite(loss):
        raise PeerLostError  # the other process saw it on its own images and names them
    if problem := _problem(state, loss, bool(finite_gradient)):  # guard: R06 stop
        state.optimizer.zero_grad(set_to_none=True)
        what = f"{problem} at learning rate {output.lr:.3g}{output.describe()}"  # guard: R06 message
        error = DivergedError(what, "lower the learning rate")
        error.quiet = math.isfinite(own_loss) and not state.distributed.is_main
        raise error


def _problem(state: TrainState, loss: float, finite_gradient: bool) -> str:
    """Why a step must not be taken; empty if it may. Counts the steps that loss scaling skips."""
    if not math.isfinite(loss):
        return f"the loss became {loss}"
    if finite_gradient:
        state.skipped = 0
        return ""
    if not state.scaler.is_enabled():
        return "a gradient is not finite"
    # Loss scaling skips such a step and lowers its factor, as it should. But it would do so silently forever.
    state.skipped += 1  # guard: R07
    if state.skipped < MAX_SKIPPED_STEPS:
        return ""
    return f"{state.skipped} steps in a row had gradients beyond the range of fp16"
