"""Optimizers over groups of parameters."""

import pytest
import torch
from torch import nn

from flowers_torch.models.freeze import Group
from flowers_torch.training.optimizers import make_optimizer, set_learning_rate


def test_frozen_parameters_are_in_no_group_and_norms_are_not_decayed() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    groups = [
        Group("0", ("0.weight", "0.bias"), 0.0),
        Group("1", ("1.weight", "1.bias"), 0.1),
        Group("2", ("2.weight", "2.bias"), 1.0),
    ]
    optimizer = make_optimizer("adamw", model, groups, weight_decay=0.3)
    found = {tuple(g["names"]): (g["multiplier"], g["weight_decay"]) for g in optimizer.param_groups}
    assert found == {("1.weight", "1.bias"): (0.1, 0.0), ("2.weight",): (1.0, 0.3), ("2.bias",): (1.0, 0.0)}
    set_learning_rate(optimizer, 0.5)
    assert {g["multiplier"]: g["lr"] for g in optimizer.param_groups} == {0.1: 0.05, 1.0: 0.5}


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "rmsprop"])
def test_every_optimizer_lowers_the_loss(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = make_optimizer(name, model, [Group("m", ("weight", "bias"), 1.0)], momentum=0.5)
    x, y = torch.randn(32, 4), torch.ones(32, 1)
    losses = []
    for _ in range(60):
        set_learning_rate(optimizer, 0.02)
        loss = (model(x) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_unknown_name() -> None:
    with pytest.raises(ValueError, match="'adamm' is not a valid optimizer"):
        make_optimizer("adamm", nn.Linear(1, 1), [])
