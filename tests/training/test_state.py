"""Steps whose numbers are read in intervals: the same results, and nothing is saved after a failed step."""

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from waiting import no_waiting

from flowers_torch.data.loading.loaders import EpochBatchSampler
from flowers_torch.errors import DivergedError, PeerLostError
from flowers_torch.models.checkpoint import ModelInfo
from flowers_torch.models.freeze import apply_rules
from flowers_torch.training.checkpoint import RESUME_FILE, Checkpointer, RunState
from flowers_torch.training.device import Runtime
from flowers_torch.training.distributed import Distributed
from flowers_torch.training.optimization import make_average, make_optimizer
from flowers_torch.training.state import (
    MAX_SKIPPED_STEPS,
    EpochMetrics,
    TrainState,
    read_steps,
)
from flowers_torch.training.step import train_epoch, train_step

CPU = Runtime(torch.device("cpu"), "fp32", "for a test")
NAMES = [f"{number}.jpg" for number in range(23)]


class Net(nn.Module):
    """A convolution, a batch norm, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.fc = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)

    def get_classifier(self) -> nn.Module:
        return self.fc

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.norm(self.conv(x)).relu().mean((2, 3)))


def training(interval: int, optimizer: str = "adamw", runtime: Runtime = CPU, **settings: Any) -> TrainState:
    model = runtime.place(Net())
    made = make_optimizer(optimizer, model, apply_rules(model, [("*", 1.0)]), 0.01)
    average = make_average(model, 0.9)
    return TrainState(model, made, runtime.scaler(), runtime, average=average, read_interval=interval, **settings)


def batches(poison: int | None = None) -> list[tuple[torch.Tensor, ...]]:
    """Six batches of four images; the last one is smaller."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(23, 3, 6, 6, generator=generator)
    labels = torch.randint(3, (23,), generator=generator)
    if poison is not None:
        images[poison] = torch.nan
    order = EpochBatchSampler(23, 4, 0, shuffle=False)
    indices = [torch.tensor([position for _, position in batch]) for batch in order]
    return [(images[index], labels[index], index) for index in indices]


def run(state: TrainState, metrics: EpochMetrics, poison: int | None = None, lr: float = 0.01) -> list[float]:
    return list(train_epoch(state, batches(poison), metrics, 0, lambda step: lr, NAMES.__getitem__))


def same(ours: nn.Module, theirs: nn.Module) -> bool:
    pairs = zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True)
    return all(torch.equal(one, two) for one, two in pairs)


@pytest.mark.parametrize("settings", [{}, {"clip_grad": 0.05, "micro_batch": 2}], ids=["plain", "clipped"])
@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd"])
def test_reading_less_often_changes_no_bit(optimizer: str, settings: dict[str, Any]) -> None:
    often, seldom = (training(interval, optimizer, **settings) for interval in (1, 4))
    first, second = EpochMetrics(), EpochMetrics()
    for _ in range(2):
        assert run(often, first) == run(seldom, second)
    assert first == second and first.images == 46
    assert same(often.model, seldom.model) and often.average is not None and seldom.average is not None
    assert same(often.average, seldom.average)


def test_metrics_are_added_when_steps_are_read() -> None:
    state, metrics = training(4), EpochMetrics()
    epoch, found = train_epoch(state, batches(), metrics, 0, lambda step: 0.01), []
    for _ in epoch:
        found.append((metrics.images, len(state.pending)))
    assert found == [(0, 1), (0, 2), (0, 3), (16, 0), (16, 1), (16, 2)] and metrics.images == 23


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("cause", ["loss", "gradient"])
def test_the_first_step_that_failed_is_named(cause: str, optimizer: str) -> None:
    """Four steps are read and finite. Of the next steps the second one fails; the error names its images."""
    state, metrics, finite = training(4, optimizer), EpochMetrics(), 5
    if cause == "gradient":
        calls = iter(range(100))
        state.model.fc.weight.register_hook(lambda grad: grad * torch.inf if next(calls) == finite else grad)
    with pytest.raises(DivergedError, match=r"in step 6 of the stage, on 20\.jpg, 21\.jpg, 22\.jpg; fix"):
        run(state, metrics, poison=21 if cause == "loss" else None)
    assert metrics.images == 20
    assert all(parameter.grad is None for parameter in state.model.parameters())


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_loss_scaling_skips_a_step_and_continues(optimizer: str) -> None:
    """The scale starts too high. Skipped steps leave the optimizer as it was."""
    scaled = [training(interval, optimizer) for interval in (1, 4)]
    for state in scaled:
        state.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        state.model.fc.weight.register_hook(lambda grad, s=state: torch.where(s.scaler._scale > 2, torch.inf, grad))
        for _ in range(2):
            run(state, EpochMetrics())
    assert same(scaled[0].model, scaled[1].model)
    assert scaled[0].scaler.state_dict() == scaled[1].scaler.state_dict()
    assert scaled[1].scaler.get_scale() == 2.0
    other = training(1, optimizer)
    whole = [*batches(), *batches()]
    for images, labels, _ in whole[2:]:
        train_step(other, images, labels, 0.01)
    for ours, theirs in zip(scaled[1].model.parameters(), other.model.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)


def test_endless_skipping_is_noticed_when_steps_are_read() -> None:
    state = training(7)
    state.scaler = torch.amp.GradScaler("cpu")
    state.model.fc.weight.register_hook(lambda gradient: gradient * torch.inf)
    before = state.model.fc.weight.detach().clone()
    metrics = EpochMetrics()
    for _ in range(3):
        run(state, metrics)
    assert state.skipped == 18 < MAX_SKIPPED_STEPS
    with pytest.raises(
        DivergedError, match=r"20 steps in a row had gradients beyond the range of fp16 .* in step 2 of"
    ):
        run(state, metrics)
    assert torch.equal(state.model.fc.weight, before)


def test_no_checkpoint_is_written_after_a_failed_step(tmp_path: Path) -> None:
    state, run_state = training(4), RunState()
    checkpointer = Checkpointer(tmp_path, run_state, ModelInfo("x", ("a", "b"), None), minutes=0.0)  # type: ignore[arg-type]
    state.metrics = run_state.metrics
    step = functools.partial(train_step, state, lr=0.01)
    state.pending.append(step(*batches()[0][:2]))
    checkpointer.save_if_due(state)
    assert not (tmp_path / RESUME_FILE).exists() and len(state.pending) == 1
    state.pending.append(step(*batches(poison=4)[1][:2]))
    with pytest.raises(DivergedError):
        checkpointer.save(state)
    assert not (tmp_path / RESUME_FILE).exists() and run_state.metrics.images == 4


class FirstOfTwo(Distributed):
    """One of two processes; the other one's loss is not finite."""

    def all_reduce_sum(self, values: torch.Tensor) -> torch.Tensor:
        return values * torch.nan if values.ndim else 2 * values


def test_another_process_reports_its_own_images() -> None:
    state = training(4)
    state.distributed = FirstOfTwo(size=2)
    state.pending = [train_step(state, *batches()[0][:2], lr=0.01)]
    with pytest.raises(PeerLostError):
        read_steps(state)


gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_a_step_on_a_gpu_waits_for_nothing(precision: str, optimizer: str) -> None:
    runtime = Runtime(torch.device("cuda"), precision, "for a test")
    weights = torch.tensor([0.5, 1.0, 2.0], device="cuda")
    state = training(20, optimizer, runtime, class_weights=weights, clip_grad=1.0, micro_batch=2)
    data = [[values.cuda() for values in batch] for batch in batches()]
    train_step(state, *data[0][:2], lr=0.01)  # allocates what is allocated once
    with no_waiting():
        state.pending = [train_step(state, *batch[:2], lr=0.01) for batch in data[1:]]
    read_steps(state)
    assert state.metrics.images == 19
