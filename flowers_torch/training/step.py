"""The training step, an epoch of steps, and a pass that only predicts."""

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowers_torch.data.loading.gpu_cache import to_device
from flowers_torch.data.loading.loaders import derived_seed
from flowers_torch.errors import ResourceError, lacks_memory, one_line, plural, printable
from flowers_torch.log import log
from flowers_torch.models.heads import main_and_auxiliary
from flowers_torch.training.device import Runtime, release_memory, search_kernels
from flowers_torch.training.distributed import sync_gradients_if
from flowers_torch.training.optimization import set_learning_rate, update_average
from flowers_torch.training.state import EpochMetrics, StepOutput, TrainState, check_step, read_steps

AUXILIARY_WEIGHT = 0.4  # of the loss of auxiliary classifiers (Szegedy et al. 2016)


def train_step(
    state: TrainState, images: Tensor, labels: Tensor, lr: float, describe: Callable[[], str] = str
) -> StepOutput:
    """One step: forward and backward by micro-batches, clip, update. It never waits for a GPU.

    With several processes each takes its shard of the batch; the output is that of the whole batch.

    Args:
        state: The network, optimizer and settings of the stage.
        images: Inputs (N, 3, H, W), or features (N, D).
        labels: Class indices (N,), or class probabilities (N, classes).
        lr: Learning rate of this step.
        describe: Says where the step was, should it fail.

    Raises:
        DivergedError: the loss or the gradient is not finite; no parameter was changed. With a
            `read_interval` above 1, `read_steps` raises it, after the update.
        ResourceError: not even two images at a time fit into the memory.
    """
    set_learning_rate(state.optimizer, lr)
    labels = to_device(labels, state.runtime.device)
    loss, correct = _backward_in_memory(state, images, labels)
    if state.penalty:
        state.scaler.scale(state.penalty(state.model)).backward()
    state.scaler.unscale_(state.optimizer)
    parameters = [p for group in state.optimizer.param_groups for p in group["params"]]
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    local = torch.stack([loss / state.distributed.size, correct, torch.full_like(loss, len(images))])
    numbers = torch.cat([state.distributed.all_reduce_sum(local), loss[None], norm.isfinite()[None]])
    output = StepOutput(numbers, lr, describe)
    if state.read_interval == 1:
        check_step(state, output, numbers.tolist())
    if state.clip_grad:
        nn.utils.clip_grads_with_norm_(parameters, state.clip_grad, norm)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
    if state.average:
        update_average(state.average, state.model)
    return output


def _backward(state: TrainState, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Adds up the gradients of a batch; its mean loss and the number of correct predictions."""
    # The weighted mean is over the whole batch, so that micro-batches add up to the gradient of one batch.
    # It is also over the processes, because DDP averages their gradients.
    total = state.distributed.all_reduce_sum(_weight_sum(state, labels)) / state.distributed.size
    weight = total.float()
    network = state.network or state.model
    forward = state.compiled or network
    # Equal micro-batches of at least two images, because batch norm cannot train on one.
    count = math.ceil(len(images) / (state.micro_batch or len(images)))
    count = max(1, min(count, len(images) // 2))
    loss = weight.new_zeros((), dtype=state.runtime.accumulation_dtype)
    correct = weight.new_zeros((), dtype=torch.int64)
    pairs = zip(images.tensor_split(count), labels.tensor_split(count), strict=True)
    for number, (inputs, targets) in enumerate(pairs, start=1):
        with sync_gradients_if(number == count, network):
            with state.runtime.autocast():
                logits, auxiliary = main_and_auxiliary(forward(state.runtime.images(inputs)))
            main = _loss_sum(state, logits, targets) / weight
            extra = sum(_loss_sum(state, other, targets) for other in auxiliary) / weight
            state.scaler.scale(main + AUXILIARY_WEIGHT * extra).backward()
        loss += main.detach()
        hard = targets if targets.ndim == 1 else targets.argmax(1)
        correct += (logits.detach().argmax(1) == hard).sum()
    return loss, correct


def _backward_in_memory(state: TrainState, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """`_backward` that halves the micro-batch and starts again where memory runs out.

    The gradients still add up to those of the whole batch, but batch norm sees fewer images at a time.
    """
    while True:
        try:
            return _backward(state, images, labels)
        except (RuntimeError, MemoryError) as error:
            if not lacks_memory(error):  # guard: R09
                raise
            reason = one_line(error)  # the error and its traceback hold tensors that must be gone before the next try
        size = min(state.micro_batch or len(images), len(images))
        # guard: R11
        if size <= 2 or state.distributed.size > 1:  # other processes are in the middle of their exchange
            what = f"out of memory with {plural(size, 'photo')} at a time ({reason})"
            raise ResourceError(what, "lower --size, or use a smaller network")
        state.optimizer.zero_grad(set_to_none=True)
        release_memory(state.runtime.device)
        state.micro_batch = math.ceil(size / 2)
        now = f"{state.micro_batch} at a time, with the gradients of {len(images)} added up"
        log.warning(f"WARNING  out of memory with {plural(size, 'photo')} at a time ({reason}); now {now}")


def _loss_sum(state: TrainState, logits: Tensor, labels: Tensor) -> Tensor:
    smoothing = state.label_smoothing
    return F.cross_entropy(logits.float(), labels, state.class_weights, label_smoothing=smoothing, reduction="sum")


def _weight_sum(state: TrainState, labels: Tensor) -> Tensor:
    """Sum of the loss weights of a batch."""
    dtype = state.runtime.accumulation_dtype
    if state.class_weights is None:
        return torch.full((), float(len(labels)), dtype=dtype, device=labels.device)
    weights = state.class_weights[labels] if labels.ndim == 1 else labels @ state.class_weights
    return weights.sum().to(dtype)


def train_epoch(
    state: TrainState,
    batches: Iterable[Sequence[Tensor]],
    metrics: EpochMetrics,
    first_step: int,
    rate: Callable[[int], float],
    name_of: Callable[[int], object] = str,
) -> Iterator[float]:
    """One pass over the training images, or the rest of one, a step at a time.

    Args:
        state: As in `train_step`; its network is in the training mode of the stage.
        batches: `(images, labels, positions)`.
        metrics: Receives the numbers of each step that is read; not empty when a pass is resumed.
        first_step: Number of the first batch within the stage.
        rate: Learning rate of a step of the stage.
        name_of: File of an image by its position, for an error's text.

    Yields:
        The learning rate of each step, when it is done.
    """
    state.metrics, usual_size = metrics, 0
    for step, (images, labels, positions) in enumerate(batches, start=first_step):
        lr, usual_size = rate(step), usual_size or len(images)
        search_kernels(state.runtime.device, state.searches_kernels and len(images) == usual_size)
        if state.distributed.size > 1:  # the main process could not save one random stream per process
            torch.manual_seed(derived_seed(state.seed, step, state.distributed.rank))
        describe = functools.partial(_describe_step, step, positions, name_of)
        state.pending.append(train_step(state, images, labels, lr, describe))
        if len(state.pending) >= state.read_interval:
            read_steps(state)
        yield lr
    read_steps(state)


def _describe_step(step: int, positions: Tensor, name_of: Callable[[int], object]) -> str:
    names = [printable(name_of(position), 80) for position in positions.tolist()]
    return f" in step {step + 1} of the stage, on {', '.join(names[:64])}"


@torch.inference_mode()
def predict_logits(
    model: nn.Module,
    batches: Iterable[Sequence[Tensor]],
    runtime: Runtime,
    after_batch: Callable[[int], Any] = lambda images: None,
    forward: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Logits and labels of every image: the one forward pass behind validation, test and prediction.

    A batch that does not fit into the memory is halved. The host waits for a GPU once, at the end.

    Args:
        model: The network; it is left in inference mode.
        batches: `(images, labels, ...)`.
        after_batch: Called with the number of images of each batch.
        forward: Computes the logits of images; the network itself if None.

    Returns:
        Float32 logits (N, classes) and labels (N,), on the CPU, in the order of the batches.
    """
    model.eval()
    search_kernels(runtime.device, False)  # there may be a single batch
    logits, labels = [], []
    for images, targets, *_ in batches:
        waiting = [images]
        while waiting:
            inputs = waiting.pop()
            try:
                with runtime.autocast():
                    output = (forward or model)(runtime.images(inputs)).float()
            except (RuntimeError, MemoryError) as error:
                if len(inputs) == 1 or not lacks_memory(error):
                    raise
                waiting += reversed(inputs.tensor_split(2))
                continue
            logits.append(runtime.to_host(output))
        labels.append(runtime.to_host(targets))
        after_batch(len(targets))
    runtime.wait()
    return torch.cat(logits), torch.cat(labels)


def balanced_class_weights(labels: Sequence[int], classes: int) -> Tensor:
    """Weights images / (classes * images of the class), as scikit-learn's `balanced`."""
    counts = torch.bincount(torch.tensor(labels), minlength=classes).clamp(min=1)
    return len(labels) / (classes * counts.float())
