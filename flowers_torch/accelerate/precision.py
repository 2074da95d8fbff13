"""Autotuning of precision: the fastest one that computes well for the network at hand."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from flowers_torch.accelerate.conv_bn import relative_deviation
from flowers_torch.models.heads import main_and_auxiliary
from flowers_torch.models.inspect.trace import at_inference
from flowers_torch.training.device import Runtime

TUNING_SECONDS = 2.0
ESTIMATE_SECONDS = 0.5  # of timing a precision that is the only one
SHORT_RUN_SECONDS = 5.0  # of work in the first candidate, below which no other one is tried
MAX_FRACTION = 0.1  # of the images ahead, that a candidate may compute; it may save about half of the work
MAX_TRIES = 3  # the fastest of which counts
BATCH_SIZES, STEPS = {"cuda": (16, 16)}, {"cuda": 4}  # images of a try, least and most (else 4, 32), and steps (else 1)
PIXELS = 4 * 224**2  # of a batch on a CPU: small images are slower one by one
MIN_GAIN = {"cuda": 1.05}  # over a candidate tried earlier, where timings vary
MAX_DEVIATION = 0.1  # L2 of the output in half precision, relative to that in fp32


def autotune(
    runtime: Runtime, model: nn.Module, size: int, backward: bool = True, images_ahead: float = math.inf
) -> Runtime:
    """Times a step with each candidate and returns the fastest one; random numbers and buffers are restored.

    A candidate after the first one is tried only where it may save more than its trial costs.

    Args:
        runtime: As chosen for the machine. If its precision is fixed, a CPU still times it, for an estimate of
            the duration.
        model: On the device, in the modes of its training.
        size: Side of the input images in pixels.
        backward: Whether to time a training step; else the forward pass of a frozen network.
        images_ahead: Images that the run will compute; one of two epochs counts twice.
    """
    if runtime.fixed:
        return _timed(runtime, model, size, backward, images_ahead) if runtime.device.type == "cpu" else runtime
    deadline = time.perf_counter() + TUNING_SECONDS
    rates: dict[Runtime, float] = {}
    remarks: list[str] = []
    tuned = True
    with _random_batch(runtime, size, images_ahead) as batch:
        fp32 = dataclasses.replace(runtime, precision="fp32")
        expected: Tensor | None = None
        for candidate in _candidates(runtime):
            name, reason = _name(candidate), ""
            if rates and not _is_worth_trying(candidate, len(batch), max(rates.values()), images_ahead):
                reason = "too little work to try"
            elif len(rates) > 1 and time.perf_counter() > deadline:
                reason = "no time for"
            if reason:
                remarks.append(f"{reason} {name}")
                tuned = False
                continue
            images = candidate.images(batch)
            if candidate != fp32:
                expected = _output(fp32, model, images) if expected is None else expected
                deviation = relative_deviation(_output(candidate, model, images), expected)
                if not deviation <= MAX_DEVIATION:
                    remarks.append(f"{name} deviates by {deviation:.2g}")
                    continue
            rates[candidate] = _rate(candidate, model, images, backward, deadline, images_ahead)
    best = next(iter(rates))
    for candidate, rate in rates.items():
        if rate > MIN_GAIN.get(runtime.device.type, 1.0) * rates[best]:
            best = candidate
    figures = [f"{_name(candidate)} {rate:.1f} img/s" for candidate, rate in rates.items()]
    reason = f"fastest of {', '.join([*figures, *remarks])}"
    return dataclasses.replace(best, reason=reason, fixed=True, rate=rates[best], tuned=tuned)


def _is_worth_trying(runtime: Runtime, batch_size: int, rate: float, images_ahead: float) -> bool:
    """Whether the work ahead is long, and the images of a trial are few beside it."""
    images = batch_size * (2 + STEPS.get(runtime.device.type, 1))  # two outputs and a try
    return images_ahead >= SHORT_RUN_SECONDS * rate and MAX_FRACTION * images_ahead >= images


def _timed(runtime: Runtime, model: nn.Module, size: int, backward: bool, images_ahead: float) -> Runtime:
    """The runtime with the rate of a step."""
    deadline = time.perf_counter() + ESTIMATE_SECONDS
    with _random_batch(runtime, size, images_ahead) as batch:
        rate = _rate(runtime, model, runtime.images(batch), backward, deadline, images_ahead)
    return dataclasses.replace(runtime, reason=f"{runtime.reason}; {rate:.1f} img/s", rate=rate, tuned=True)


@contextlib.contextmanager
def _random_batch(runtime: Runtime, size: int, images_ahead: float) -> Iterator[Tensor]:
    """Random images (N, 3, size, size); inside, random numbers are those of a copy of the generators."""
    kind = runtime.device.type
    least, most = BATCH_SIZES.get(kind, (4, 32))
    count = max(least, min(most, PIXELS / size**2, MAX_FRACTION * images_ahead / MAX_TRIES))
    with torch.random.fork_rng(devices=[runtime.device] if kind == "cuda" else []):
        yield torch.randn(int(count), 3, size, size)


def _rate(
    runtime: Runtime, model: nn.Module, images: Tensor, backward: bool, deadline: float, images_ahead: float
) -> float:
    """Images per second; gradients are dropped and buffers restored."""
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    if runtime.device.type == "cuda":  # it first loads and chooses its kernels
        _step_seconds(runtime, model, images, backward)
    seconds = [_step_seconds(runtime, model, images, backward)]
    computed = len(images) * STEPS.get(runtime.device.type, 1)
    most = min(MAX_TRIES, MAX_FRACTION * images_ahead / computed)
    while len(seconds) + 1 <= most and time.perf_counter() < deadline:
        seconds.append(_step_seconds(runtime, model, images, backward))
    rate = len(images) / min(seconds)
    model.zero_grad(set_to_none=True)
    for name, value in model.named_buffers():
        value.copy_(buffers[name])
    return rate


def _candidates(runtime: Runtime) -> list[Runtime]:
    """Precisions to try, the most promising first."""
    precisions = ["fp32", "bf16"]
    if runtime.device.type == "cuda":
        precisions = ["bf16", "fp16", "fp32"] if runtime.precision == "bf16" else ["fp16", "fp32"]
    return [dataclasses.replace(runtime, precision=precision) for precision in precisions]


def _name(candidate: Runtime) -> str:
    tf32 = " (TF32)" if (candidate.device.type, candidate.precision) == ("cuda", "fp32") else ""
    return f"{candidate.precision}{tf32}"


def _output(runtime: Runtime, model: nn.Module, images: Tensor) -> Tensor:
    with at_inference(model), runtime.autocast():
        output: Tensor = model(images)
    return output.float()


def _step_seconds(runtime: Runtime, model: nn.Module, images: Tensor, backward: bool) -> float:
    """Seconds of a step, on a GPU the mean of several in a row, as in training."""
    steps, synchronize = STEPS.get(runtime.device.type, 1), torch.get_device_module(runtime.device).synchronize
    synchronize()
    started = time.perf_counter()
    for _ in range(steps):
        with contextlib.nullcontext() if backward else at_inference(model), runtime.autocast():
            logits, _ = main_and_auxiliary(model(images))
        if backward:
            logits.float().logsumexp(1).sum().backward()
    synchronize()
    return (time.perf_counter() - started) / steps
