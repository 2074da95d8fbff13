"""The training step, an epoch of them, and a pass that only predicts."""

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowers_torch.data.loading.loaders import derived_seed
from flowers_torch.errors import ResourceError, printable
from flowers_torch.log import log
from flowers_torch.models.heads import main_and_auxiliary
from flowers_torch.training.distributed import sync_gradients_if
from flowers_torch.training.optimizers import set_learning_rate
from flowers_torch.training.regularization import update_average
from flowers_torch.training.runtime import Runtime, search_kernels
from flowers_torch.training.state import EpochMetrics, StepOutput, TrainState, check_step, read_steps


def train_step(
    training: TrainState, images: Tensor, labels: Tensor, lr: float, where: Callable[[], str] = str
) -> StepOutput:
    """One step: forward and backward a micro-batch at a time, clip, update.

    Of several processes each takes its share of the batch; what comes out is that of the whole batch.

    Args:
        training: The stage's network, optimiser and settings.
        images: Inputs (N, 3, H, W).
        labels: Class indices (N,), or shares of the classes (N, classes).
        lr: Learning rate of this step.
        where: What else to say of the step should it fail.

    Raises:
        DivergedError: the loss or the gradient is not finite; no parameter was touched. With `read_every`
            above 1 nothing is touched either, from that step on, and `read_steps` raises.
    """
    set_learning_rate(training.optimizer, lr)
    labels = labels.to(training.runtime.device, non_blocking=True)
    # The weighted mean is over the whole batch, so that micro-batches add up to the gradient of one batch.
    # Over the processes too, of whose gradients DDP takes the mean.
    weight = (training.world.sum(_weight(training, labels)) / training.world.size).float()
    network = training.called or training.model
    call = training.quick or network
    # Equal parts, and never a single photo, on which batch norm cannot train.
    parts = math.ceil(len(images) / (training.micro_batch or len(images)))
    parts = max(1, min(parts, len(images) // 2))
    loss, correct = weight.new_zeros((), dtype=training.runtime.wide), weight.new_zeros((), dtype=torch.int64)
    pairs = zip(images.tensor_split(parts), labels.tensor_split(parts), strict=True)
    for part, (some, targets) in enumerate(pairs, start=1):
        with sync_gradients_if(part == parts, network):
            with training.runtime.autocast():
                logits, auxiliary = main_and_auxiliary(call(training.runtime.images(some)))
            main = _loss_sum(training, logits, targets) / weight
            extra = sum(_loss_sum(training, other, targets) for other in auxiliary) / weight
            training.scaler.scale(main + training.auxiliary_weight * extra).backward()
        loss += main.detach()
        correct += (logits.detach().argmax(1) == _hard(targets)).sum()
    if training.penalty:
        training.scaler.scale(training.penalty(training.model)).backward()
    training.scaler.unscale_(training.optimizer)
    parameters = [p for group in training.optimizer.param_groups for p in group["params"]]
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    shared = torch.stack([loss / training.world.size, correct, torch.full_like(loss, len(images))])
    numbers = torch.cat([training.world.sum(shared), loss[None], norm.isfinite()[None]])
    outcome = StepOutput(numbers.cpu() if training.read_every == 1 else numbers, lr, where)
    if training.read_every == 1:
        check_step(training, outcome, outcome.numbers.tolist())
    if training.clip_grad:
        nn.utils.clip_grads_with_norm_(parameters, training.clip_grad, norm)
    _update(training, numbers)
    training.optimizer.zero_grad(set_to_none=True)
    if training.average:
        update_average(training.average, training.model)
    return outcome


def _update(training: TrainState, numbers: Tensor) -> None:
    """The optimiser's step; where steps are not read one by one, the device decides what is left out."""
    if training.read_every == 1:
        training.scaler.step(training.optimizer)
    else:
        loss_is_wrong, gradient_is_wrong = ~numbers[0].isfinite(), numbers[4] == 0
        # Loss scaling goes on after a gradient beyond fp16; nothing else does.
        fails = loss_is_wrong if training.scaler.is_enabled() else loss_is_wrong | gradient_is_wrong
        training.failed = fails if training.failed is None else training.failed | fails
        # What GradScaler does with its own finding, which it would put in the place of ours.
        # guard: R06 later
        training.optimizer.found_inf = (training.failed | gradient_is_wrong).float()  # type: ignore[attr-defined]
        training.optimizer.step()
        del training.optimizer.found_inf  # type: ignore[attr-defined]
    training.scaler.update()


def train_step_in_memory(
    training: TrainState, images: Tensor, labels: Tensor, lr: float, where: Callable[[], str] = str
) -> StepOutput:
    """`train_step`; where memory is too small, the micro-batch is halved and the step begins again.

    Gradients add up to those of the whole batch, except that batch norm sees fewer photos at once.

    Raises:
        ResourceError: not even two photos at once fit.
        DivergedError: as `train_step`.
    """
    while True:
        try:
            return train_step(training, images, labels, lr, where)
        except torch.OutOfMemoryError:  # guard: R09
            pass  # what follows must wait until the error and its trace, which hold on to tensors, are gone
        at_once = min(training.micro_batch or len(images), len(images))
        # guard: R11
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


def _loss_sum(training: TrainState, logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(
        logits.float(),
        labels,
        weight=training.class_weights,
        label_smoothing=training.label_smoothing,
        reduction="sum",
    )


def _weight(training: TrainState, labels: Tensor) -> Tensor:
    if training.class_weights is None:
        return torch.full((), float(len(labels)), dtype=training.runtime.wide, device=labels.device)
    weights = training.class_weights[labels] if labels.ndim == 1 else labels @ training.class_weights
    return weights.sum().to(training.runtime.wide)


def _hard(labels: Tensor) -> Tensor:
    return labels if labels.ndim == 1 else labels.argmax(1)


def train_epoch(
    training: TrainState,
    batches: Iterable[Sequence[Tensor]],
    sums: EpochMetrics,
    first_step: int,
    rate: Callable[[int], float],
    name_of: Callable[[int], object] = str,
) -> Iterator[float]:
    """One pass, or the rest of one, over the training photos, a step at a time.

    Args:
        training: As `train_step`; its network is in the training mode that the stage wants.
        batches: `(images, labels, positions)`.
        sums: Added to after each step that is read; not empty when a pass is resumed in its middle.
        first_step: Number of the first batch within the stage.
        rate: Learning rate of a step of the stage.
        name_of: The file of a photo by its position, for an error's text.

    Yields:
        The learning rate of each step, when it is done.
    """
    training.sums, usual = sums, 0
    for step, (images, labels, positions) in enumerate(batches, start=first_step):
        lr, usual = rate(step), usual or len(images)
        search_kernels(training.runtime.device, len(images) == usual)
        if training.world.size > 1:  # a stream for each process could not be saved by the main one
            torch.manual_seed(derived_seed(training.seed, step, training.world.rank))
        where = functools.partial(_where, step, positions, name_of)
        training.pending.append(train_step_in_memory(training, images, labels, lr, where))
        if len(training.pending) >= training.read_every:
            read_steps(training)
        yield lr
    read_steps(training)


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
    search_kernels(runtime.device, False)  # which may be for a single batch
    logits, labels = [], []
    for images, targets, *_ in batches:
        with runtime.autocast():
            logits.append(model(runtime.images(images)).float())
        labels.append(targets)
        after_batch(len(targets))
    return torch.cat(logits).cpu(), torch.cat(labels).cpu()


def class_weights(labels: Sequence[int], classes: int) -> Tensor:
    """Balanced weights, photos / (classes x photos of the class), as scikit-learn's `balanced`."""
    counts = torch.bincount(torch.tensor(labels), minlength=classes).clamp(min=1)
    return len(labels) / (classes * counts.float())
