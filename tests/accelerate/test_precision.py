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
def test_the_faster_precision_is_chosen_and_nothing_else_changes(faster: str, monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert chosen.precision == faster and chosen.fixed and "32.0 img/s" in chosen.reason
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


@pytest.mark.parametrize(("half", "expected"), [("bf16", ["bf16", "fp16", "fp32"]), ("fp16", ["fp16", "fp32"])])
def test_the_candidates_of_a_gpu(half: str, expected: list[str]) -> None:
    candidates = precision._candidates(Runtime(torch.device("cuda"), half, "", fixed=False))
    assert [candidate.precision for candidate in candidates] == expected


def test_two_candidates_are_timed_without_regard_to_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    def candidates(start: Runtime) -> list[Runtime]:
        return [dataclasses.replace(start, precision=name) for name in ("fp32", "bf16", "fp16")]

    monkeypatch.setattr(precision, "TUNING_SECONDS", 0.0)
    monkeypatch.setattr(precision, "_candidates", candidates)
    runtime = Runtime(torch.device("cpu"), "bf16", "for a test", fixed=False)
    chosen = autotune(runtime, create_model("test_resnet", num_classes=3), 32)
    assert chosen.reason.count("img/s") == 2 and "no time for fp16" in chosen.reason


# A trial may compute a tenth of the images ahead, and needs 12; five seconds of work are a short run.
@pytest.mark.parametrize(
    ("rate", "images_ahead", "tried"),
    [(4, 119, ["fp32"]), (4, 121, ["fp32", "bf16"]), (400, 1990, ["fp32"]), (400, 2010, ["fp32", "bf16"])],
)
def test_another_precision_is_tried_only_where_it_may_save_more_than_its_trial_costs(
    rate: float, images_ahead: int, tried: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    compared, computed = [], dict.fromkeys(("fp32", "bf16"), 0)
    real = precision._output

    def output(candidate: Runtime, *arguments: Any) -> torch.Tensor:
        compared.append(candidate.precision)
        return real(candidate, *arguments)

    def seconds(candidate: Runtime, model: torch.nn.Module, images: torch.Tensor, backward: bool) -> float:
        computed[candidate.precision] += len(images)
        return len(images) / rate * {"fp32": 1.0, "bf16": 0.5}[candidate.precision]

    monkeypatch.setattr(precision, "_output", output)
    monkeypatch.setattr(precision, "_step_seconds", seconds)
    runtime = Runtime(torch.device("cpu"), "bf16", "for a test", fixed=False)
    chosen = autotune(runtime, create_model("test_resnet", num_classes=3), 32, images_ahead=images_ahead)
    assert [name for name in computed if computed[name]] == tried and chosen.precision == tried[-1]
    assert max(computed.values()) <= 0.1 * images_ahead and len(compared) == 2 * (len(tried) - 1)
    assert ("too little work to try bf16" in chosen.reason) == (len(tried) == 1)


@pytest.mark.parametrize(("images_ahead", "images"), [(0, 4), (60, 4), (90, 8), (130, 12), (600, 60), (10**6, 96)])
def test_few_images_ahead_are_estimated_by_few(images_ahead: int, images: int, monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[int] = []
    monkeypatch.setattr(precision, "_step_seconds", lambda runtime, model, batch, *_: timed.append(len(batch)) or 0.1)
    runtime = Runtime(torch.device("cpu"), "fp32", "for a test")
    autotune(runtime, torch.nn.Identity(), 32, images_ahead=images_ahead)
    assert sum(timed) == images


@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_a_fixed_precision_is_timed_and_nothing_changes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = create_model("test_resnet", num_classes=3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    asked: list[str] = []

    def seconds(candidate: Runtime, *arguments: Any) -> float:
        asked.append(candidate.precision)
        return 0.5

    torch.manual_seed(0)
    draw = torch.rand(1)
    torch.manual_seed(0)
    with monkeypatch.context() as patch:
        patch.setattr(precision, "_step_seconds", seconds)
        chosen = autotune(Runtime(torch.device("cpu"), name, "set by the user"), model, 32)
    assert (chosen.precision, chosen.reason, chosen.rate) == (name, "set by the user; 64.0 img/s", 64.0)
    assert autotune(Runtime(torch.device("cpu"), name, "set by the user"), model, 32).rate > 0
    assert set(asked) == {name} and torch.equal(torch.rand(1), draw)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_fixed_precision_of_a_gpu_is_not_timed() -> None:
    runtime = Runtime(torch.device("cuda"), "bf16", "set by the user")
    assert autotune(runtime, torch.nn.Identity(), 32) is runtime


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
