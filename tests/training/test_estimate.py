"""The estimate of a stage: of the right size, and without a trace."""

import torch

from flowers_torch.models.factory import create_model
from flowers_torch.models.freeze import apply_rules, rules_for, set_train_mode
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
