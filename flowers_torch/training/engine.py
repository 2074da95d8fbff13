"""The training step, an epoch of them, and a pass that only predicts."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from flowers_torch.data.loaders import counted_seed
from flowers_torch.errors import DivergedError, PeerLostError, ResourceError, printable
from flowers_torch.models.heads import main_and_auxiliary
from flowers_torch.training.distributed import ALONE, World, exchange_only_at
from flowers_torch.training.monitors import log
from flowers_torch.training.optim import set_learning_rate
from flowers_torch.training.regularize import Penalty
from flowers_torch.training.runtime import Runtime

MAX_SKIPPED_STEPS = 20  # in a row, by loss scaling, which begins with some


@dataclasses.dataclass
class Sums:
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


@dataclasses.dataclass
class Training:
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
    world: World = ALONE  # the processes that train together
    called: nn.Module | None = None  # what a step calls, where it is not the network: its tail, or DDP's wrap
    seed: int = 0  # of dropout, where there are several
    skipped: int = 0  # steps in a row that loss scaling has skipped

    @property
    def evaluated(self) -> nn.Module:
        """The network to validate and to keep: the moving average where there is one."""
        return self.average.module if self.average else self.model


def train_step(
    training: Training, images: Tensor, labels: Tensor, lr: float, where: Callable[[], str] = str
) -> tuple[float, int]:
    """One step: forward and backward a micro-batch at a time, clip, update.

    Of several processes each takes its share of the batch; what comes out is that of the whole batch.

    Args:
        training: The stage's network, optimiser and settings.
        images: Inputs (N, 3, H, W).
        labels: Class indices (N,), or shares of the classes (N, classes).
        lr: Learning rate of this step.
        where: What else to say of the step should it fail.

    Returns:
        Mean loss of the batch, penalties left out, and the number of photos classified right.

    Raises:
        DivergedError: the loss or the gradient is not finite; no parameter was touched.
    """
    set_learning_rate(training.optimizer, lr)
    labels = labels.to(training.runtime.device, non_blocking=True)
    # The weighted mean is over the whole batch, so that micro-batches add up to the gradient of one batch.
    # Over the processes too, of whose gradients DDP takes the mean.
    weight = training.world.sum(_weight(training.class_weights, labels))[0] / training.world.size
    network = training.called or training.model
    # Equal parts, and never a single photo, on which batch norm cannot train.
    parts = math.ceil(len(images) / (training.micro_batch or len(images)))
    parts = max(1, min(parts, len(images) // 2))
    loss, correct = 0.0, 0.0
    pairs = zip(images.tensor_split(parts), labels.tensor_split(parts), strict=True)
    for part, (some, targets) in enumerate(pairs, start=1):
        with exchange_only_at(part == parts, network):
            with training.runtime.autocast():
                logits, auxiliary = main_and_auxiliary(network(training.runtime.images(some)))
            main = _loss_sum(training, logits, targets) / weight
            extra = sum(_loss_sum(training, other, targets) for other in auxiliary) / weight
            training.scaler.scale(main + training.auxiliary_weight * extra).backward()
        loss += float(main.detach())
        correct += int((logits.detach().argmax(1) == _hard(targets)).sum())
    if training.penalty:
        training.scaler.scale(training.penalty(training.model)).backward()
    training.scaler.unscale_(training.optimizer)
    parameters = [p for group in training.optimizer.param_groups for p in group["params"]]
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    own_loss = loss
    loss, right = training.world.sum(loss, correct)
    loss /= training.world.size
    if math.isfinite(own_loss) and not math.isfinite(loss):
        raise PeerLostError  # which has seen it on its own photos, and names them
    if problem := _problem(training, loss, math.isfinite(norm)):
        training.optimizer.zero_grad(set_to_none=True)
        error = DivergedError(f"{problem} at learning rate {lr:.3g}{where()}", "lower the learning rate")
        error.quiet = math.isfinite(own_loss) and not training.world.is_main
        raise error
    if training.clip_grad:
        nn.utils.clip_grads_with_norm_(parameters, training.clip_grad, norm)
    training.scaler.step(training.optimizer)
    training.scaler.update()
    training.optimizer.zero_grad(set_to_none=True)
    if training.average:
        training.average.update_parameters(training.model)
    return loss, int(right)


def _problem(training: Training, loss: float, finite_gradient: bool) -> str:
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
    training.skipped += 1
    return (
        f"{training.skipped} steps in a row had gradients beyond fp16"
        if training.skipped >= MAX_SKIPPED_STEPS
        else ""
    )


def train_step_in_memory(
    training: Training, images: Tensor, labels: Tensor, lr: float, where: Callable[[], str] = str
) -> tuple[float, int]:
    """`train_step`; where memory is too small, the micro-batch is halved and the step begins again.

    Gradients add up to those of the whole batch, except that batch norm sees fewer photos at once.

    Raises:
        ResourceError: not even two photos at once fit.
        DivergedError: as `train_step`.
    """
    while True:
        try:
            return train_step(training, images, labels, lr, where)
        except torch.OutOfMemoryError:
            pass  # what follows must wait until the error and its trace, which hold on to tensors, are gone
        at_once = min(training.micro_batch or len(images), len(images))
        if at_once <= 2 or training.world.size > 1:  # the others are in the middle of their exchange
            raise ResourceError(
                f"out of memory with {at_once} photos at once", "lower --size, or take a smaller network"
            )
        training.optimizer.zero_grad(set_to_none=True)
        if training.runtime.device.type == "cuda":
            torch.cuda.empty_cache()
        training.micro_batch = math.ceil(at_once / 2)
        log.warning(
            f"WARNING  out of memory with {at_once} photos at once; from now on {training.micro_batch},"
            f" with the gradients of {len(images)} added up"
        )


def _loss_sum(training: Training, logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(
        logits.float(),
        labels,
        weight=training.class_weights,
        label_smoothing=training.label_smoothing,
        reduction="sum",
    )


def _weight(class_weights: Tensor | None, labels: Tensor) -> float:
    if class_weights is None:
        return float(len(labels))
    return float(class_weights[labels].sum() if labels.ndim == 1 else (labels @ class_weights).sum())


def _hard(labels: Tensor) -> Tensor:
    return labels if labels.ndim == 1 else labels.argmax(1)


def train_epoch(
    training: Training,
    batches: Iterable[Sequence[Tensor]],
    sums: Sums,
    first_step: int,
    rate: Callable[[int], float],
    name_of: Callable[[int], object] = str,
) -> Iterator[float]:
    """One pass, or the rest of one, over the training photos, a step at a time.

    Args:
        training: As `train_step`; its network is in the training mode that the stage wants.
        batches: `(images, labels, positions)`.
        sums: Added to after each step; not empty when a pass is resumed in its middle.
        first_step: Number of the first batch within the stage.
        rate: Learning rate of a step of the stage.
        name_of: The file of a photo by its position, for an error's text.

    Yields:
        The learning rate of each step, when it is done.
    """
    for step, (images, labels, positions) in enumerate(batches, start=first_step):
        lr = rate(step)
        if training.world.size > 1:  # a stream for each process could not be saved by the main one
            torch.manual_seed(counted_seed(training.seed, step, training.world.rank))
        where = functools.partial(_where, step, positions, name_of)
        loss, correct = train_step_in_memory(training, images, labels, lr, where)
        photos = int(training.world.sum(len(labels))[0])
        sums.loss += loss * photos
        sums.correct += correct
        sums.photos += photos
        yield lr


def _where(step: int, positions: Tensor, name_of: Callable[[int], object]) -> str:
    names = [printable(name_of(position), 80) for position in positions.tolist()]
    return f" in step {step + 1} of the stage, on {', '.join(names[:64])}"


@torch.inference_mode()
def predict_logits(
    model: nn.Module,
    batches: Iterable[Sequence[Tensor]],
    runtime: Runtime,
    after_batch: Callable[[int], Any] = lambda photos: None,
) -> tuple[Tensor, Tensor]:
    """Logits and labels of every photo; the one forward pass behind validation, test and prediction.

    Args:
        model: The network; left in inference mode.
        batches: `(images, labels, ...)`.
        runtime: Device and precision.
        after_batch: Called with the number of photos of each batch.

    Returns:
        Float32 logits (N, classes) and labels (N,), on the CPU, in the order of the batches.
    """
    model.eval()
    logits, labels = [], []
    for images, targets, *_ in batches:
        with runtime.autocast():
            logits.append(model(runtime.images(images)).float().cpu())
        labels.append(targets)
        after_batch(len(targets))
    return torch.cat(logits), torch.cat(labels)


def class_weights(labels: Sequence[int], classes: int) -> Tensor:
    """Balanced weights, photos / (classes x photos of the class), as scikit-learn's `balanced`."""
    counts = torch.bincount(torch.tensor(labels), minlength=classes).clamp(min=1)
    return len(labels) / (classes * counts.float())
