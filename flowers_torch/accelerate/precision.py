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
BATCH_SIZE, STEPS = {"cuda": 16}, {"cuda": 4}  # images of a timed batch and steps in a row; else 4 and 1
MIN_GAIN = {"cuda": 1.05}  # over a candidate tried earlier, where timings vary
MAX_DEVIATION = 0.1  # L2 of the output in half precision, relative to that in fp32


def autotune(
    runtime: Runtime, model: nn.Module, size: int, backward: bool = True, images_ahead: float = math.inf
) -> Runtime:
    """Times a step with each candidate and returns the fastest one; random numbers and buffers are restored.

    Args:
        runtime: As chosen for the machine. If its precision is fixed, a CPU still times it, for an estimate of
            the duration.
        model: On the device, in the modes of its training.
        size: Side of the input images in pixels.
        backward: Whether to time a training step; else the forward pass of a frozen network.
        images_ahead: Images that the run will compute; one of two epochs counts twice.
    """
    if runtime.fixed:
        return _timed(runtime, model, size, backward) if runtime.device.type == "cpu" else runtime
    deadline = time.perf_counter() + TUNING_SECONDS
    rates: dict[Runtime, float] = {}
    remarks: list[str] = []
    with _random_batch(runtime, size) as batch:
        fp32 = dataclasses.replace(runtime, precision="fp32")
        expected = _output(fp32, model, fp32.images(batch))
        for candidate in _candidates(runtime):
            name = _name(candidate)
            if rates and images_ahead < SHORT_RUN_SECONDS * max(rates.values()):
                remarks.append(f"too little work to try {name}")
                continue
            if len(rates) > 1 and time.perf_counter() > deadline:
                remarks.append(f"no time for {name}")
                continue
            images = candidate.images(batch)
            output = expected if candidate == fp32 else _output(candidate, model, images)
            deviation = relative_deviation(output, expected)
            if not deviation <= MAX_DEVIATION:
                remarks.append(f"{name} deviates by {deviation:.2g}")
                continue
            rates[candidate] = _rate(candidate, model, images, backward, deadline)
    best = next(iter(rates))
    for candidate, rate in rates.items():
        if rate > MIN_GAIN.get(runtime.device.type, 1.0) * rates[best]:
            best = candidate
    figures = [f"{_name(candidate)} {rate:.1f} img/s" for candidate, rate in rates.items()]
    reason = f"fastest of {', '.join([*figures, *remarks])}"
    return dataclasses.replace(best, reason=reason, fixed=True, rate=rates[best])


def _timed(runtime: Runtime, model: nn.Module, size: int, backward: bool) -> Runtime:
    """The runtime with the rate of a step."""
    deadline = time.perf_counter() + ESTIMATE_SECONDS
    with _random_batch(runtime, size) as batch:
        rate = _rate(runtime, model, runtime.images(batch), backward, deadline)
    return dataclasses.replace(runtime, reason=f"{runtime.reason}; {rate:.1f} img/s", rate=rate)


@contextlib.contextmanager
def _random_batch(runtime: Runtime, size: int) -> Iterator[Tensor]:
    """Random images (N, 3, size, size); inside, random numbers are those of a copy of the generators."""
    kind = runtime.device.type
    with torch.random.fork_rng(devices=[runtime.device] if kind == "cuda" else []):
        yield torch.randn(BATCH_SIZE.get(kind, 4), 3, size, size)


def _rate(runtime: Runtime, model: nn.Module, images: Tensor, backward: bool, deadline: float) -> float:
    """Images per second; gradients are dropped and buffers restored."""
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    rate = len(images) / _fastest_step(runtime, model, images, backward, deadline)
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


def _fastest_step(runtime: Runtime, model: nn.Module, images: Tensor, backward: bool, deadline: float) -> float:
    """Seconds of the fastest of up to three steps; a GPU first loads and chooses its kernels."""
    if runtime.device.type == "cuda":
        _step_seconds(runtime, model, images, backward)
    seconds = [_step_seconds(runtime, model, images, backward)]
    while len(seconds) < 3 and time.perf_counter() < deadline:
        seconds.append(_step_seconds(runtime, model, images, backward))
    return min(seconds)


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
