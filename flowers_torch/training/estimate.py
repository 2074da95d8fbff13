"""Time and memory of a training step, measured on this machine."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

from flowers_torch.files.system import waiting_seconds
from flowers_torch.log import log
from flowers_torch.models.heads import main_and_auxiliary
from flowers_torch.training.device import Runtime

# State tensors per parameter; L-BFGS remembers a hundred steps, twice.
IMAGES_TRIED = 8
OPTIMIZER_COPIES = {"adamw": 2, "adam": 2, "sgd": 1, "rmsprop": 2, "lbfgs": 200}
MIN_SECONDS = 0.5  # of timing; less of it says nothing about the machine
BUSY = 0.3  # of the wall time; one other busy process on two cores makes two threads wait for 0.5 to 0.7


@dataclasses.dataclass(frozen=True)
class StepCost:
    """Cost of a step."""

    train_seconds: float  # per image: forward and backward
    predict_seconds: float  # per image: forward
    memory_bytes: int  # parameters, gradients, optimizer and activations of a batch


@contextlib.contextmanager
def busy_note(device: torch.device) -> Iterator[None]:
    """Logs that the machine is busy if threads had to wait for a core while a step was timed on the CPU inside."""
    started, waited = time.monotonic(), waiting_seconds()
    yield
    seconds, waited = time.monotonic() - started, waiting_seconds() - waited
    if device.type == "cpu" and seconds > MIN_SECONDS and waited > BUSY * seconds:
        log.info(
            f"note     the machine is busy: in {seconds:.1f} s of timing, threads waited {waited:.1f} s for a core;"
            " estimates of the duration are too high if that ends"
        )


def estimate(model: nn.Module, size: int, batch_size: int, runtime: Runtime, optimizer: str) -> StepCost:
    """Times a forward pass and a training step on random images, in the current modes of the network.

    Args:
        model: The network with `requires_grad` and modes as in the stage. Only the batch-norm statistics of
            layers that train are changed.
        size: Input side in pixels.
        batch_size: Images per step.
        optimizer: Its name, for its memory.
    """
    images = torch.randn(min(IMAGES_TRIED, batch_size), 3, size, size)
    labels = torch.zeros(len(images), dtype=torch.long, device=runtime.device)
    saved: dict[int, int] = {}

    def remember(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    def step(backward: bool) -> float:
        started = time.perf_counter()
        with torch.set_grad_enabled(backward), runtime.autocast():
            logits, _ = main_and_auxiliary(model(runtime.images(images)))
        if backward:
            F.cross_entropy(logits.float(), labels).backward()
        if runtime.device.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - started) / len(images)

    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        step(backward=True)  # warm-up: kernels are chosen here
    train_seconds = min(step(backward=True) for _ in range(2))
    predict_seconds = min(step(backward=False) for _ in range(2))
    model.zero_grad(set_to_none=True)

    parameters = list(model.parameters())
    own = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    activations = sum(size for pointer, size in saved.items() if pointer not in own)
    trained = sum(p.nbytes for p in parameters if p.requires_grad)
    weights = sum(p.nbytes for p in parameters)
    state = trained * (1 + OPTIMIZER_COPIES[optimizer])
    return StepCost(train_seconds, predict_seconds, weights + state + activations * batch_size // len(images))
