"""Compiled and captured steps: the numbers of plain ones, and what is said."""

import logging
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowers_torch.accelerate import compiled as quick
from flowers_torch.accelerate.compiled import CompiledStep, compile_step
from flowers_torch.errors import UsageError
from flowers_torch.models.freeze import apply_rules
from flowers_torch.training.optimizers import make_optimizer
from flowers_torch.training.device import Runtime
from flowers_torch.training.state import TrainState
from flowers_torch.training.step import train_step

CPU = Runtime(torch.device("cpu"), "fp32", "for a test")
CUDA = Runtime(torch.device("cuda"), "fp32", "for a test")


class Net(nn.Module):
    """A convolution, a batch norm, dropout and a classifier, with auxiliary logits."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.drop = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(dropout)
        self.fc, self.extra = nn.Linear(4, 3), nn.Linear(4, 3)

    def get_classifier(self) -> nn.Module:
        return self.fc

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.drop(self.norm(self.conv(x)).relu().mean((2, 3)))
        return (self.fc(x), self.extra(x)) if self.training else self.fc(x)


def training(runtime: Runtime = CPU, dropout: float = 0.0) -> TrainState:
    model = runtime.place(Net(dropout))
    optimizer = make_optimizer("adamw", model, apply_rules(model, [("*", 1.0)]))
    return TrainState(model, optimizer, runtime.scaler(), runtime)


def steps(state: TrainState, sizes: tuple[int, ...] = (8, 8, 5, 8)) -> list[float]:
    generator = torch.Generator().manual_seed(1)
    losses = []
    for size in sizes:
        images = torch.randn(size, 3, 8, 8, generator=generator)
        losses.append(train_step(state, images, torch.arange(size) % 3, lr=0.01).loss)
    return losses


def test_only_batches_of_one_size_are_made_fast(caplog: pytest.LogCaptureFixture) -> None:
    calls: list[int] = []

    def make(network: nn.Module, images: Tensor) -> Callable[[Tensor], Any]:
        calls.append(-len(images))

        def call(images: Tensor) -> Any:
            calls.append(len(images))
            return network(images)

        return call

    state, twin = training(), training()
    state.quick = CompiledStep(state.model, 8, make, "painted red")
    with caplog.at_level(logging.INFO, "flowers_torch"):
        assert steps(state, (5, 8, 8, 5, 8)) == steps(twin, (5, 8, 8, 5, 8))
    assert calls == [-8, 8, 8, 8]
    assert caplog.text.count("quick    painted red for batches of 8 photos, in 0.0 s") == 1


@pytest.mark.parametrize(
    ("runtime", "options", "said"),
    [
        (CPU, {"cuda_graph": True}, "cuda_graph is left out: on cpu there is none"),
        (CUDA, {"cuda_graph": True, "micro_batch": 4}, "cuda_graph is left out: micro-batches"),
        (CUDA, {"cuda_graph": True, "processes": 2}, "cuda_graph is left out: it is for a single process"),
        (CPU, {"compiled": True, "processes": 2}, "compile is left out: it is for a single process"),
        (CPU, {}, ""),
    ],
)
def test_what_is_not_possible_is_said(
    runtime: Runtime, options: dict[str, Any], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "flowers_torch"):
        assert compile_step(Net(), runtime, 8, **options) is None
    assert said in caplog.text and bool(said) == bool(caplog.text)


def test_the_size_is_that_of_what_goes_through_the_network_at_once() -> None:
    for micro_batch, photos in ((0, 20), (8, 7), (20, 20)):
        made = compile_step(Net(), CPU, 20, micro_batch, compiled=True)
        assert made is not None and made.photos == photos
    made = compile_step(Net(), CUDA, 20, cuda_graph=True)
    assert made is not None and made.photos == 20


@pytest.mark.slow
def test_a_compiler_that_fails_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def backend(*arguments: Any) -> None:
        raise RuntimeError("no compiler here")

    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda call, **options: real(call, backend=backend, **options))
    state = training()
    state.quick = compile_step(state.model, CPU, 8, compiled=True)
    with pytest.raises(
        UsageError, match=r"torch.compile fails: .*no compiler here.*; fix: leave out --compile"
    ):
        steps(state)


@pytest.mark.slow
def test_a_traced_step_is_the_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """By torch's tracing backend, which needs no C++ compiler; names in the state stay as they were."""
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda call, **options: real(call, backend="aot_eager", **options))
    state, twin = training(), training()
    names = list(state.model.state_dict())
    state.quick = compile_step(state.model, CPU, 8, compiled=True)
    assert steps(state) == pytest.approx(steps(twin))
    assert list(state.model.state_dict()) == names
    assert set(state.optimizer.param_groups[0]["names"]) <= set(names)
    for name, value in twin.model.state_dict().items():
        torch.testing.assert_close(state.model.state_dict()[name], value, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.filterwarnings("default")
def test_a_compiled_step_is_the_plain_one(caplog: pytest.LogCaptureFixture) -> None:
    state, twin = training(), training()
    state.quick = compile_step(state.model, CPU, 8, compiled=True)
    with caplog.at_level(logging.INFO, "flowers_torch"):
        assert steps(state) == pytest.approx(steps(twin), rel=1e-4)
    assert "quick    compiled for batches of 8 photos, in" in caplog.text


gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_captured_step_is_the_plain_one(precision: str) -> None:
    runtime = Runtime(torch.device("cuda"), precision, "for a test")
    state, twin = training(runtime), training(runtime)
    state.quick = compile_step(state.model, runtime, 8, cuda_graph=True)
    assert steps(state) == pytest.approx(steps(twin), rel=1e-2)
    assert state.quick is not None and state.quick.made is not state.model  # it was captured
    for name, value in twin.model.named_buffers():
        torch.testing.assert_close(state.model.get_buffer(name), value, atol=1e-2, rtol=1e-2)


@pytest.mark.gpu
@gpu
def test_a_captured_step_drops_as_a_plain_one_would() -> None:
    """The stream of random numbers goes on as without a graph, and each replay draws anew."""
    state, twin = training(CUDA, dropout=0.5), training(CUDA, dropout=0.5)
    state.quick = compile_step(state.model, CUDA, 8, cuda_graph=True)
    found = []
    for one in (state, twin):
        torch.cuda.manual_seed(3)
        found.append(steps(one, (8,) * 4))
    assert found[0] == pytest.approx(found[1], rel=1e-3)


def test_a_capture_that_fails_leaves_the_network(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """On a CPU, torch's CUDA parts replaced: batch norm and random numbers are as before, and it is said."""

    def fail(module: nn.Module, samples: tuple[Tensor], **options: Any) -> None:
        module(*samples)  # warming up
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    states: list[Tensor] = []
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", fail)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: torch.tensor([7]))
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: states.append(state))
    network = Net().train()
    before = network.norm.running_mean.clone()
    with caplog.at_level(logging.INFO, "flowers_torch"):
        assert quick._capture(network, torch.randn(4, 3, 8, 8), CUDA) is network
        assert torch.equal(network.norm.running_mean, before)
        CompiledStep(network, 4, lambda network, images: network, "captured")(torch.randn(4, 3, 8, 8))
    assert "captured" not in caplog.text.replace("capturing", "")
    assert "no CUDA graph: operation not permitted when stream is capturing" in caplog.text
    assert int(states[0]) == 7
