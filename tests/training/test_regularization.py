"""Penalties against their formulas, the moving average against a loop."""

import copy

import pytest
import torch
from torch import nn

from flowers_torch.training.regularization import make_average, make_penalty, update_average


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.norm, self.fc = nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)


def moved() -> tuple[Net, Net]:
    """A network, and the same network after its weights moved."""
    model = Net()
    before = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    return before, model


def test_no_penalty_without_factors() -> None:
    assert make_penalty(Net()) is None


def test_the_penalty_is_its_formula_over_kernels() -> None:
    before, model = moved()
    penalty = make_penalty(before, l1=0.1, l2=0.2)
    assert penalty is not None
    body, fc = model.body.weight, model.fc.weight
    expected = 0.1 * (body.abs().sum() + fc.abs().sum()) + 0.2 * (body.square().sum() + fc.square().sum())
    assert torch.allclose(penalty(model), expected)
    penalty(model).backward()
    assert model.body.bias.grad is None and model.norm.weight.grad is None
    own = 0.1 * body.sign() + 0.4 * body
    assert body.grad is not None and torch.allclose(body.grad, own, atol=1e-6)


def test_frozen_weights_are_left_out() -> None:
    model = Net()
    model.body.requires_grad_(False)
    penalty = make_penalty(model, l2=1.0)
    assert penalty is not None and penalty.names == ("fc.weight",)


@pytest.mark.parametrize("decay", [0.5, 0.99])
def test_the_average_warms_up(decay: float) -> None:
    model = Net()
    average = make_average(model, decay)
    assert average is not None
    expected, statistics = torch.empty(0), torch.empty(0)
    for update in range(5):
        with torch.no_grad():
            model.body.weight.mul_(0.5)
            model.norm.running_mean += 1
            model.norm.num_batches_tracked += 1
        average.update_parameters(model)
        if update == 0:
            expected = model.body.weight.detach().clone()  # the first values are taken as they are
            statistics = model.norm.running_mean.clone()
        else:
            fraction = min(decay, (1 + update) / (10 + update))
            expected = fraction * expected + (1 - fraction) * model.body.weight.detach()
            statistics = fraction * statistics + (1 - fraction) * model.norm.running_mean
    assert torch.allclose(average.module.body.weight, expected)
    assert torch.allclose(average.module.norm.running_mean, statistics)
    assert int(average.module.norm.num_batches_tracked) == 5


def test_no_average_without_decay() -> None:
    assert make_average(Net(), 0.0) is None


def test_update_average_equals_torch() -> None:
    model = Net()
    ours, theirs = make_average(model, 0.9), make_average(model, 0.9)
    assert ours is not None and theirs is not None
    for _ in range(4):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
            model.norm.num_batches_tracked += 1
        update_average(ours, model)
        theirs.update_parameters(model)
    pairs = zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True)
    assert all(torch.equal(one, two) for one, two in pairs)
