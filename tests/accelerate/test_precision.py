"""Tuning chooses the fastest precision and memory layout that compute well."""

import dataclasses
from typing import Any

import pytest
import torch

from flowers_torch.accelerate import precision
from flowers_torch.accelerate.precision import autotune
from flowers_torch.models.factory import create_model
from flowers_torch.training.device import Runtime, choose_runtime


@pytest.mark.parametrize("faster", ["fp32", "bf16"])
def test_the_faster_precision_is_chosen_and_nothing_else_changes(
    faster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = create_model("test_resnet", num_classes=3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    real = precision._step_seconds

    def seconds(candidate: Runtime, *arguments: Any) -> float:
        real(candidate, *arguments)
        return 1.0 if candidate.precision == faster else 2.0

    monkeypatch.setattr(precision, "_step_seconds", seconds)
    torch.manual_seed(0)
    draw = torch.rand(1)
    torch.manual_seed(0)
    runtime = Runtime(torch.device("cpu"), "bf16", "for a test", fixed=False)
    chosen = autotune(runtime, model, 32)
    assert chosen.precision == faster and chosen.fixed and "4.0 img/s" in chosen.reason
    assert torch.equal(torch.rand(1), draw)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_precision_with_another_output_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    model = create_model("test_resnet", num_classes=3)
    real = precision._output

    def output(candidate: Runtime, *arguments: Any) -> torch.Tensor:
        return real(candidate, *arguments) * (1.5 if candidate.precision == "bf16" else 1.0)

    monkeypatch.setattr(precision, "_output", output)
    runtime = Runtime(torch.device("cpu"), "bf16", "for a test", fixed=False)
    chosen = autotune(runtime, model, 32)
    assert chosen.precision == "fp32" and "bf16 deviates by 0.5" in chosen.reason and chosen.rate > 0


@pytest.mark.parametrize(
    ("half", "expected"), [("bf16", ["bf16", "fp16", "fp32"]), ("fp16", ["fp16", "fp32"])]
)
def test_the_candidates_of_a_gpu(half: str, expected: list[str]) -> None:
    both = precision._candidates(Runtime(torch.device("cuda"), half, "", fixed=False))
    first = precision._candidates(Runtime(torch.device("cuda"), half, "", channels_last=False, fixed=False))
    assert [(c.precision, c.channels_last) for c in both] == [
        *((name, True) for name in expected),
        *((name, False) for name in expected),
    ]
    assert [(c.precision, c.channels_last) for c in first] == [(name, False) for name in expected]


@pytest.mark.parametrize("channels_last", [True, False])
def test_the_network_takes_the_fastest_memory_layout(
    channels_last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kernel(model: torch.nn.Module) -> torch.Tensor:
        return next(p for p in model.parameters() if p.ndim == 4 and p.shape[1] > 1 and p.shape[2] > 1)

    def candidates(start: Runtime) -> list[Runtime]:
        return [dataclasses.replace(start, channels_last=layout) for layout in (True, False)]

    def seconds(candidate: Runtime, model: torch.nn.Module, images: torch.Tensor, backward: bool) -> float:
        layout = torch.channels_last if candidate.channels_last else torch.contiguous_format
        assert images.is_contiguous(memory_format=layout)
        assert kernel(model).is_contiguous(memory_format=layout)
        return 1.0 if candidate.channels_last == channels_last else 2.0

    monkeypatch.setattr(precision, "_candidates", candidates)
    monkeypatch.setattr(precision, "_step_seconds", seconds)
    runtime = Runtime(torch.device("cpu"), "fp32", "for a test", fixed=False)
    model = runtime.place(create_model("test_resnet", num_classes=3))
    chosen = autotune(runtime, model, 32)
    assert chosen.channels_last == channels_last and "fp32 channels first" in chosen.reason
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert kernel(model).is_contiguous(memory_format=layout)


def test_two_candidates_are_timed_without_regard_to_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    layouts = (True, True, False)
    monkeypatch.setattr(precision, "TUNING_SECONDS", 0.0)
    monkeypatch.setattr(
        precision,
        "_candidates",
        lambda start: [
            dataclasses.replace(start, precision=name, channels_last=layout)
            for name, layout in zip(("fp32", "bf16", "fp32"), layouts, strict=True)
        ],
    )
    runtime = Runtime(torch.device("cpu"), "bf16", "for a test", fixed=False)
    chosen = autotune(runtime, create_model("test_resnet", num_classes=3), 32)
    assert chosen.reason.count("img/s") == 2 and "no time for fp32 channels first" in chosen.reason


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_tuning_on_a_gpu() -> None:
    runtime = choose_runtime("cuda")
    assert not runtime.fixed and torch.backends.cuda.matmul.allow_tf32
    model = runtime.place(create_model("resnet50", num_classes=3))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    chosen = autotune(runtime, model, 224)
    assert chosen.fixed and chosen.rate > 0 and "bf16" in chosen.reason + runtime.reason
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
