"""The training step, an epoch of them, and a pass that only predicts."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowers_torch.errors import DivergedError
from flowers_torch.models.heads import main_and_auxiliary
from flowers_torch.training.optim import set_learning_rate
from flowers_torch.training.runtime import Runtime


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


def train_step(training: Training, images: Tensor, labels: Tensor, lr: float) -> tuple[float, int]:
    """One step: forward, loss, backward, clip, update.

    Args:
        training: The stage's network, optimiser and settings.
        images: Inputs (N, 3, H, W).
        labels: Class indices (N,).
        lr: Learning rate of this step.

    Returns:
        Mean loss of the batch and the number of photos classified right.

    Raises:
        DivergedError: the loss or the gradient is not finite; no parameter was touched.
    """
    set_learning_rate(training.optimizer, lr)
    labels = labels.to(training.runtime.device, non_blocking=True)
    with training.runtime.autocast():
        logits, auxiliary = main_and_auxiliary(training.model(training.runtime.images(images)))
    loss = _loss(training, logits, labels)
    total = loss + sum(training.auxiliary_weight * _loss(training, extra, labels) for extra in auxiliary)
    if not math.isfinite(value := float(loss.detach())):
        raise DivergedError(f"the loss became {value} at learning rate {lr:.3g}", "lower the learning rate")
    training.scaler.scale(total).backward()
    training.scaler.unscale_(training.optimizer)
    parameters = [p for group in training.optimizer.param_groups for p in group["params"]]
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    # With loss scaling an infinite gradient is part of the method: the scaler skips that step itself.
    if not training.scaler.is_enabled() and not math.isfinite(norm):
        raise DivergedError(f"a gradient is not finite at learning rate {lr:.3g}", "lower the learning rate")
    if training.clip_grad:
        nn.utils.clip_grads_with_norm_(parameters, training.clip_grad, norm)
    training.scaler.step(training.optimizer)
    training.scaler.update()
    training.optimizer.zero_grad(set_to_none=True)
    return value, int((logits.detach().argmax(1) == labels).sum())


def _loss(training: Training, logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(
        logits.float(), labels, weight=training.class_weights, label_smoothing=training.label_smoothing
    )


def train_epoch(
    training: Training,
    batches: Iterable[Sequence[Tensor]],
    sums: Sums,
    first_step: int,
    rate: Callable[[int], float],
) -> Iterator[float]:
    """One pass, or the rest of one, over the training photos, a step at a time.

    Args:
        training: As `train_step`; its network is in the training mode that the stage wants.
        batches: `(images, labels, positions)`.
        sums: Added to after each step; not empty when a pass is resumed in its middle.
        first_step: Number of the first batch within the stage.
        rate: Learning rate of a step of the stage.

    Yields:
        The learning rate of each step, when it is done.
    """
    for step, (images, labels, _) in enumerate(batches, start=first_step):
        lr = rate(step)
        loss, correct = train_step(training, images, labels, lr)
        sums.loss += loss * len(labels)
        sums.correct += correct
        sums.photos += len(labels)
        yield lr


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
