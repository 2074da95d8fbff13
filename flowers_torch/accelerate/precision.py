"""Autotuning of precision: the fastest one that computes well for the network at hand.

Why: on CPUs neither fp32 nor bf16 is faster for all networks. Dense convolutions gain from bf16, depthwise
ones only where they are fused. On GPUs bf16, fp16 and fp32 with TF32 compete.
Gain: a head-only run on 340 images takes 9.7 s, in fp32 10.9 s (EfficientNet-Lite0, 2 cores with AMX).
Check: the output in each precision is compared with that in fp32. Random numbers, gradients, buffers and
modes are restored afterwards.
"""

import dataclasses
import time

import torch
from torch import Tensor, nn

from flowers_torch.models.heads import main_and_auxiliary
from flowers_torch.training.device import Runtime

TUNING_SECONDS = 2.0
BATCH_SIZE, STEPS = {"cuda": 16}, {"cuda": 4}  # images of a timed batch and steps in a row; else 4 and 1
MIN_GAIN = {"cuda": 1.05}  # over a candidate tried earlier, where timings vary
MAX_DEVIATION = 0.1  # L2 of the output in half precision, relative to that in fp32


def autotune(runtime: Runtime, model: nn.Module, size: int, backward: bool = True) -> Runtime:
    """Times a step with each candidate and returns the fastest one.

    Args:
        runtime: As chosen for the machine.
        model: On the device, in the modes of its training.
        size: Side of the input images in pixels.
        backward: Whether to time a training step; else the forward pass of a frozen network.
    """
    deadline = time.perf_counter() + TUNING_SECONDS
    modes = {module: module.training for module in model.modules()}
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    rates: dict[Runtime, float] = {}
    remarks: list[str] = []
    kind = runtime.device.type
    with torch.random.fork_rng(devices=[runtime.device] if kind == "cuda" else []):
        batch = torch.randn(BATCH_SIZE.get(kind, 4), 3, size, size)
        fp32 = dataclasses.replace(runtime, precision="fp32")
        expected = _output(fp32, model, fp32.images(batch))
        for candidate in _candidates(runtime):
            name = _name(candidate)
            if len(rates) > 1 and time.perf_counter() > deadline:
                remarks.append(f"no time for {name}")
                continue
            images = candidate.images(batch)
            output = expected if candidate == fp32 else _output(candidate, model, images)
            deviation = float((output - expected).norm() / expected.norm().clamp(min=1e-12))
            if not deviation <= MAX_DEVIATION:
                remarks.append(f"{name} deviates by {deviation:.2g}")
                continue
            if backward:
                _set_modes(modes)
            rates[candidate] = len(batch) / _fastest_step(candidate, model, images, backward, deadline)
            model.zero_grad(set_to_none=True)
            for buffer_name, value in model.named_buffers():
                value.copy_(buffers[buffer_name])
    _set_modes(modes)
    best = next(iter(rates))
    for candidate, rate in rates.items():
        if rate > MIN_GAIN.get(kind, 1.0) * rates[best]:
            best = candidate
    figures = [f"{_name(candidate)} {rate:.1f} img/s" for candidate, rate in rates.items()]
    reason = f"fastest of {', '.join([*figures, *remarks])}"
    return dataclasses.replace(best, reason=reason, fixed=True, rate=rates[best])


def _candidates(runtime: Runtime) -> list[Runtime]:
    """Precisions to try, the most promising first."""
    precisions = ["fp32", "bf16"]
    if runtime.device.type == "cuda":
        precisions = ["bf16", "fp16", "fp32"] if runtime.precision == "bf16" else ["fp16", "fp32"]
    return [dataclasses.replace(runtime, precision=precision) for precision in precisions]


def _name(candidate: Runtime) -> str:
    tf32 = " (TF32)" if (candidate.device.type, candidate.precision) == ("cuda", "fp32") else ""
    return f"{candidate.precision}{tf32}"


def _set_modes(modes: dict[nn.Module, bool]) -> None:
    for module, training in modes.items():
        module.training = training


def _output(runtime: Runtime, model: nn.Module, images: Tensor) -> Tensor:
    model.eval()
    with torch.no_grad(), runtime.autocast():
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
    steps = STEPS.get(runtime.device.type, 1)
    _synchronize(runtime.device)
    started = time.perf_counter()
    for _ in range(steps):
        with torch.set_grad_enabled(backward), runtime.autocast():
            logits, _ = main_and_auxiliary(model(images))
        if backward:
            logits.float().logsumexp(1).sum().backward()
    _synchronize(runtime.device)
    return (time.perf_counter() - started) / steps


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
