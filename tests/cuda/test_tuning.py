"""Precision autotuning on the simulated GPU: what is tried and chosen. The times are made up, the steps are real."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowers_torch.accelerate import AUTO, Acceleration, precision
from flowers_torch.models.factory import create_model
from flowers_torch.training.device import Runtime, choose_runtime


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(precision.BATCH_SIZES, "cuda", (2, 2))
    monkeypatch.setitem(precision.STEPS, "cuda", 1)


def tuned(
    monkeypatch: pytest.MonkeyPatch, model: nn.Module, seconds: dict[str, float], images_ahead: float = math.inf
) -> Runtime:
    """The outcome of tuning on a machine where a step in each precision takes so long."""
    real, runtime = precision._step_seconds, choose_runtime("cuda")

    def step_seconds(candidate: Runtime, network: nn.Module, images: Tensor, backward: bool) -> float:
        assert images.is_cuda and images.is_contiguous(memory_format=torch.channels_last)
        real(candidate, network, images, backward)
        return seconds[candidate.precision]

    monkeypatch.setattr(precision, "_step_seconds", step_seconds)
    monkeypatch.setattr(precision, "TUNING_SECONDS", math.inf)  # the simulation is slow
    return AUTO.tuned(runtime, runtime.place(model), 32, True, images_ahead)


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [
        ({"bf16": 1.0, "fp16": 1.5, "fp32": 2.0}, "bf16"),
        ({"bf16": 1.0, "fp16": 0.97, "fp32": 2.0}, "bf16"),  # so small a gain may be chance
        ({"bf16": 1.0, "fp16": 0.9, "fp32": 2.0}, "fp16"),
        ({"bf16": 1.0, "fp16": 0.9, "fp32": 0.5}, "fp32"),
        ({"fp16": 1.0, "fp32": 2.0}, "fp16"),  # a GPU without bf16
    ],
)
def test_the_fastest_precision_is_chosen(
    seconds: dict[str, float], chosen: str, gpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **options: "bf16" in seconds)
    torch.manual_seed(0)
    model = create_model("test_resnet", num_classes=3)
    before, state = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state()
    found = tuned(monkeypatch, model, seconds)
    assert (found.precision, found.fixed, found.rate) == (chosen, True, pytest.approx(2 / seconds[chosen]))
    assert found.reason.count("img/s") == len(seconds) and "fp32 (TF32)" in found.reason
    assert torch.equal(torch.get_rng_state(), state) and all(p.grad is None for p in model.parameters())
    assert all(value.is_cuda and torch.equal(value.cpu(), before[name]) for name, value in model.state_dict().items())


class Large(nn.Sequential):
    """Its activations exceed the range of fp16."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
        self[0].weight.data *= 1e6


def test_a_precision_that_overflows_is_not_chosen(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found = tuned(monkeypatch, Large(), {"bf16": 1.0, "fp16": 0.1, "fp32": 2.0})
    assert found.precision == "bf16" and "fp16 deviates by" in found.reason


def test_a_short_run_tries_one_precision(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"bf16": 0.01, "fp16": 0.001, "fp32": 0.02}
    found = tuned(monkeypatch, create_model("test_resnet", num_classes=3), times, images_ahead=900)
    assert found.precision == "bf16" and "too little work to try fp16, too little work to try fp32" in found.reason


def test_without_the_trick_a_gpu_computes_in_fp32(gpu: Any) -> None:
    runtime = choose_runtime("cuda")
    found = Acceleration.parse("off").tuned(runtime, nn.Identity(), 32, True)
    assert (found.precision, found.rate) == ("fp32", 0.0)
