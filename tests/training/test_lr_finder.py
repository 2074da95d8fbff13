"""The range test on a problem whose largest stable rate is known."""

import pytest
import torch
from torch import nn

from flowers_torch.errors import DivergedError
from flowers_torch.models.freeze import apply_rules
from flowers_torch.training.device import Runtime
from flowers_torch.training.lr_finder import lr_find
from flowers_torch.training.optimization import make_optimizer
from flowers_torch.training.state import TrainState

RUNTIME = Runtime(torch.device("cpu"), "fp32", "for a test")


def training() -> TrainState:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    model.get_classifier = lambda: model[1]  # type: ignore[assignment]
    made = make_optimizer("sgd", model, apply_rules(model, [("*", 1.0)]), momentum=0.0)
    return TrainState(model, made, RUNTIME.scaler(), RUNTIME)


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(30) % 3
    images = torch.randn(30, 3, 2, 2, generator=generator) + labels[:, None, None, None]
    return list(zip(images.split(10), labels.split(10), strict=True))


def test_the_rate_it_suggests_trains_and_ten_times_the_highest_does_not() -> None:
    sweep = lr_find(training(), batches(), lowest=1e-4, highest=100.0, steps=60)
    factors = [later / earlier for earlier, later in zip(sweep.rates, sweep.rates[1:], strict=False)]
    assert all(factor == pytest.approx((100 / 1e-4) ** (1 / 59)) for factor in factors)
    assert len(sweep.rates) == len(sweep.losses) <= 60
    lowest = sweep.rates[sweep.losses.index(min(sweep.losses))]
    assert 1e-3 < sweep.suggestion <= lowest / 2
    assert f"{lowest:.2g}" in sweep.reason


def test_a_sweep_that_starts_too_high_says_so() -> None:
    with pytest.raises(DivergedError, match="rose at every rate"):
        lr_find(training(), batches(), lowest=1e3, highest=1e6, steps=20)
