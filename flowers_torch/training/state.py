"""What training steps work on and what they came to, read from a GPU only now and then.

A GPU computes on while the next steps are prepared, as long as nobody asks it for a number. So the numbers of
some steps wait there, and what must be decided at once, whether a step can be taken, the GPU decides itself.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from flowers_torch.accelerate.compiled import CompiledStep
from flowers_torch.errors import DivergedError, PeerLostError
from flowers_torch.training.distributed import SINGLE_PROCESS, Distributed
from flowers_torch.training.regularization import Penalty
from flowers_torch.training.runtime import Runtime

MAX_SKIPPED_STEPS = 20  # in a row, by loss scaling, which begins with some
READ_EVERY = 20  # steps on a GPU, which computes on while the next ones are prepared


@dataclasses.dataclass
class EpochMetrics:
    """What an epoch has added up so far; means are taken once, at its end."""

    loss: float = 0.0
    correct: int = 0
    photos: int = 0

    @property
    def mean_loss(self) -> float:
        return self.loss / max(1, self.photos)

    @property
    def accuracy(self) -> float:
        return self.correct / max(1, self.photos)


@dataclasses.dataclass(frozen=True)
class StepOutput:
    """What a step came to. Its numbers are on the device: whoever asks for one waits until it is computed."""

    # Of all processes: mean loss without penalties, right answers, photos. The loss of this process's share,
    # and whether the gradient was finite.
    numbers: Tensor
    lr: float
    where: Callable[[], str]  # what else to say of the step should it have failed

    @property
    def loss(self) -> float:
        """Mean loss of the batch, penalties left out."""
        return float(self.numbers[0])

    @property
    def correct(self) -> int:
        """Photos that were classified right."""
        return int(self.numbers[1])


@dataclasses.dataclass
class TrainState:
    """The objects of a stage that a training step works on; plain data, no behaviour of its own."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    runtime: Runtime
    class_weights: Tensor | None = None
    label_smoothing: float = 0.0
    auxiliary_weight: float = 0.4
    clip_grad: float = 0.0
    micro_batch: int = 0  # photos that go through the network at once; 0: the whole batch
    penalty: Penalty | None = None
    average: AveragedModel | None = None
    world: Distributed = SINGLE_PROCESS  # the processes that train together
    called: nn.Module | None = None  # what a step calls, where it is not the network: its tail, or DDP's wrap
    seed: int = 0  # of dropout, where there are several
    skipped: int = 0  # steps in a row that loss scaling has skipped
    read_every: int = 1  # steps; above 1 the device itself skips what cannot be taken, see `read_every`
    pending: list[StepOutput] = dataclasses.field(default_factory=list)  # steps that are not yet read
    sums: EpochMetrics = dataclasses.field(default_factory=EpochMetrics)  # to which they are added
    failed: Tensor | None = None  # 1 on the device from a failed step on, after which none is taken
    quick: CompiledStep | None = None  # calls what a step calls, faster

    @property
    def evaluated(self) -> nn.Module:
        """The network to validate and to keep: the moving average where there is one."""
        return self.average.module if self.average else self.model


def read_every(optimizer: torch.optim.Optimizer, device: torch.device) -> int:
    """Steps between two readings: a CPU has nothing to wait for, and only fused optimisers can skip."""
    return READ_EVERY if device.type == "cuda" and optimizer.defaults.get("fused") else 1


def read_steps(training: TrainState) -> None:
    """Waits for the steps that are not yet read, and adds what they came to to the sums.

    Every process has to come here after the same step.

    Raises:
        DivergedError: one of them failed; no parameter was touched in it or after it.
    """
    pending, training.pending = training.pending, []
    if not pending:
        return
    rows = torch.stack([outcome.numbers for outcome in pending]).tolist()
    for outcome, row in zip(pending, rows, strict=True):
        if training.read_every > 1:  # else it was done before its update
            check_step(training, outcome, row)
        loss, correct, photos, *_ = row
        training.sums.loss += loss * photos
        training.sums.correct += int(correct)
        training.sums.photos += int(photos)


def check_step(training: TrainState, outcome: StepOutput, numbers: Sequence[float]) -> None:
    """Raises for a step that could not be taken."""
    loss, _, _, own_loss, finite_gradient = numbers
    if math.isfinite(own_loss) and not math.isfinite(loss):
        raise PeerLostError  # which has seen it on its own photos, and names them
    if problem := _problem(training, loss, bool(finite_gradient)):  # guard: R06 stop
        training.optimizer.zero_grad(set_to_none=True)
        what = f"{problem} at learning rate {outcome.lr:.3g}{outcome.where()}"  # guard: R06 message
        error = DivergedError(what, "lower the learning rate")
        error.quiet = math.isfinite(own_loss) and not training.world.is_main
        raise error


def _problem(training: TrainState, loss: float, finite_gradient: bool) -> str:
    """Why a step cannot be taken; empty where it can. Counts the steps that loss scaling skips."""
    if not math.isfinite(loss):
        return f"the loss became {loss}"
    if finite_gradient:
        training.skipped = 0
        return ""
    if not training.scaler.is_enabled():
        return "a gradient is not finite"
    # With loss scaling that is part of the method: the scaler skips the step and lowers its factor. But it
    # would do so for ever, without a word.
    training.skipped += 1  # guard: R07
    return (
        f"{training.skipped} steps in a row had gradients beyond fp16"
        if training.skipped >= MAX_SKIPPED_STEPS
        else ""
    )
