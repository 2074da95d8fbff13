"""The estimate of a stage: of the right size, and without a trace."""

from types import SimpleNamespace

import pytest
import torch

from flowers_torch.models.factory import create_model
from flowers_torch.models.freeze import apply_rules, rules_for, set_train_mode
from flowers_torch.training import estimate as estimate_module
from flowers_torch.training.device import Runtime
from flowers_torch.training.estimate import busy_note, estimate

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


@pytest.mark.parametrize(
    ("device", "waited", "noted"),
    [
        ("cpu", 0.0, False),
        ("cpu", 2.9, False),
        ("cpu", 3.1, True),
        ("cpu", 20.0, True),
        ("cpu", -1.0, False),
        ("cuda", 9.0, False),  # it waits for the GPU
    ],
)
def test_a_busy_machine_is_noted(
    device: str, waited: float, noted: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Ten seconds of timing; two threads together may have waited for longer than that. A thread that ended: -1."""
    clocks = {"monotonic": iter([100.0, 110.0]), "waiting": iter([5.0, 5.0 + waited])}
    monkeypatch.setattr(estimate_module, "waiting_seconds", lambda: next(clocks["waiting"]))
    monkeypatch.setattr(estimate_module, "time", SimpleNamespace(monotonic=lambda: next(clocks["monotonic"])))
    with caplog.at_level("INFO", "flowers_torch"), busy_note(torch.device(device)):
        pass
    assert ("the machine is busy: in 10.0 s of timing" in caplog.text) == noted
