"""The estimate of a stage: of the right size, and without a trace."""

import time

import pytest
import torch

from flowers_torch.models.factory import create_model
from flowers_torch.models.freeze import apply_rules, rules_for, set_train_mode
from flowers_torch.training import estimate as estimate_module
from flowers_torch.training.device import Runtime
from flowers_torch.training.estimate import estimate

RUNTIME = Runtime(torch.device("cpu"), "fp32", "for a test")


def test_training_all_costs_more_than_training_the_head() -> None:
    model = create_model("test_resnet", num_classes=3)
    needs = {}
    for train in ("head", "all"):
        apply_rules(model, rules_for(model, train))
        set_train_mode(model)
        needs[train] = estimate(model, 64, 32, RUNTIME, "adamw")
        assert all(parameter.grad is None for parameter in model.parameters())
    assert needs["all"].memory_bytes > 2 * needs["head"].memory_bytes
    assert needs["all"].train_seconds > needs["head"].predict_seconds > 0


def test_activations_grow_with_the_batch() -> None:
    model = create_model("test_resnet", num_classes=3)
    small, large = (estimate(model, 64, batch, RUNTIME, "sgd").memory_bytes for batch in (8, 64))
    weights = 4 * sum(parameter.numel() for parameter in model.parameters())
    assert large - 3 * weights > 6 * (small - 3 * weights)


@pytest.mark.parametrize(("fraction", "slowdown"), [(1.0, 1.0), (0.25, 4.0)])
def test_other_programs_on_the_processor_are_noticed(
    fraction: float, slowdown: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate_module, "MIN_SECONDS", 0.0)
    monkeypatch.setattr(time, "thread_time", lambda: fraction * time.perf_counter())
    model = create_model("test_resnet", num_classes=3)
    assert estimate(model, 32, 8, RUNTIME, "sgd").slowdown == pytest.approx(slowdown, rel=0.05)
    monkeypatch.setattr(estimate_module, "MIN_SECONDS", 60.0)  # too short to tell
    assert estimate(model, 32, 8, RUNTIME, "sgd").slowdown == 1.0
