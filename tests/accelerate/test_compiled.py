"""A compiled network has the numbers of the plain one, for batches of one size."""

import shutil
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowers_torch.accelerate.compiled import CompiledNetwork
from flowers_torch.errors import UsageError
from flowers_torch.models.freeze import apply_rules
from flowers_torch.training.device import Runtime
from flowers_torch.training.optimization import make_optimizer
from flowers_torch.training.state import TrainState
from flowers_torch.training.step import train_step

CPU = Runtime(torch.device("cpu"), "fp32", "for a test")


class Net(nn.Module):
    """A convolution, a batch norm and a classifier, with auxiliary logits."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.fc, self.extra = nn.Linear(4, 3), nn.Linear(4, 3)

    def get_classifier(self) -> nn.Module:
        return self.fc

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.norm(self.conv(x)).relu().mean((2, 3))
        return (self.fc(x), self.extra(x)) if self.training else self.fc(x)


def train_state() -> TrainState:
    model = CPU.place(Net())
    optimizer = make_optimizer("adamw", model, apply_rules(model, [("*", 1.0)]))
    return TrainState(model, optimizer, CPU.scaler(), CPU)


def steps(state: TrainState, sizes: tuple[int, ...] = (8, 8, 5, 8)) -> list[float]:
    generator = torch.Generator().manual_seed(1)
    losses = []
    for size in sizes:
        images = torch.randn(size, 3, 8, 8, generator=generator)
        losses.append(train_step(state, images, torch.arange(size) % 3, lr=0.01).loss)
    return losses


def use_backend(monkeypatch: pytest.MonkeyPatch, backend: Any) -> None:
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda call, **options: real(call, backend=backend, **options))


def test_only_batches_of_one_size_are_compiled(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sizes: list[int] = []

    def compile_nothing(call: Any, **options: Any) -> Any:
        def run(images: Tensor) -> Any:
            sizes.append(len(images))
            return call(images)

        return run

    monkeypatch.setattr(torch, "compile", compile_nothing)
    state, plain = train_state(), train_state()
    state.compiled = CompiledNetwork(state.model, 8)
    with caplog.at_level("INFO", "flowers_torch"):
        assert steps(state, (5, 8, 8, 5, 8)) == steps(plain, (5, 8, 8, 5, 8))
    assert sizes == [8, 8, 8]
    assert caplog.text.count("compile  compiled for batches of 8 images in 0.0 s") == 1


@pytest.mark.slow
def test_a_compiler_that_fails_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def backend(*arguments: Any) -> None:
        raise RuntimeError("no compiler here")

    use_backend(monkeypatch, backend)
    state = train_state()
    state.compiled = CompiledNetwork(state.model, 8)
    with pytest.raises(UsageError, match=r"torch.compile fails: .*no compiler here.*; fix: use accelerate"):
        steps(state)


@pytest.mark.slow
def test_a_traced_step_is_the_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """By torch's tracing backend, which needs no C++ compiler. The names of the state stay."""
    use_backend(monkeypatch, "aot_eager")
    state, plain = train_state(), train_state()
    names = list(state.model.state_dict())
    state.compiled = CompiledNetwork(state.model, 8)
    assert steps(state) == pytest.approx(steps(plain))
    assert list(state.model.state_dict()) == names
    assert set(state.optimizer.param_groups[0]["names"]) <= set(names)
    for name, value in plain.model.state_dict().items():
        torch.testing.assert_close(state.model.state_dict()[name], value, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.filterwarnings("default")
def test_a_compiled_step_is_the_plain_one(caplog: pytest.LogCaptureFixture) -> None:
    state, plain = train_state(), train_state()
    state.compiled = CompiledNetwork(state.model, 8)
    with caplog.at_level("INFO", "flowers_torch"):
        assert steps(state) == pytest.approx(steps(plain), rel=1e-4)
    assert "compile  compiled for batches of 8 images in" in caplog.text
