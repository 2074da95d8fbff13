"""Optimizers, learning rates, penalties and the moving average of the weights."""

import copy
import math

import pytest
import torch
from torch import nn

from flowers_torch.models.factory import create_model
from flowers_torch.models.freeze import Group, apply_rules
from flowers_torch.training.optimization import (
    learning_rate,
    make_average,
    make_optimizer,
    make_penalty,
    out_of_patience,
    plateau_multiplier,
    set_learning_rate,
    update_average,
)


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


@pytest.mark.parametrize(
    ("name", "momentum", "nesterov"), [("sgd", 0.9, False), ("sgd", 0.9, True), ("rmsprop", 0, True)]
)
def test_steps_are_keras(name: str, momentum: float, nesterov: bool) -> None:
    """The updates of Keras's SGD and RMSprop, with `decay`, as its documentation writes them."""
    weight, model = torch.tensor(2.0, dtype=torch.float64), nn.Linear(1, 1, bias=False).double()
    with torch.no_grad():
        model.weight.fill_(2.0)
    optimizer = make_optimizer(name, model, [Group("m", ("weight",), 1.0)], momentum=momentum, nesterov=nesterov)
    velocity, squares = torch.zeros(2, dtype=torch.float64)
    decay = 0.5 if name == "rmsprop" else 0.0  # a velocity of Keras holds the learning rate of its own step
    for step in range(4):
        lr = 0.1 / (1 + decay * step)
        gradient = 2 * weight  # of weight squared
        if name == "sgd":
            velocity = momentum * velocity - lr * gradient
            weight = weight + (momentum * velocity - lr * gradient if nesterov else velocity)
        else:
            squares = 0.9 * squares + 0.1 * gradient**2
            weight = weight - lr * gradient / (squares.sqrt() + 1e-7)
        set_learning_rate(optimizer, learning_rate(step, 4, 0.1, "constant", decay=decay))
        model.weight.square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        assert model.weight.item() == pytest.approx(weight.item(), rel=1e-6)


def test_unknown_name() -> None:
    with pytest.raises(ValueError, match="'adamm' is not a valid optimizer"):
        make_optimizer("adamm", nn.Linear(1, 1), [])


def test_cosine_with_warm_up() -> None:
    rates = [learning_rate(step, 100, 1.0, "cosine", warmup=10) for step in range(100)]
    assert rates[0] == pytest.approx(1 / 11) and max(rates) == rates[10] == 1.0
    assert all(a < b for a, b in zip(rates[:10], rates[1:11], strict=True))
    assert all(a > b for a, b in zip(rates[10:], rates[11:], strict=False)) and rates[-1] < 0.001


def test_constant() -> None:
    assert [learning_rate(step, 5, 0.1, "constant") for step in range(5)] == [0.1] * 5


def test_unknown_schedule() -> None:
    with pytest.raises(ValueError, match="'linear' is not a valid schedule"):
        learning_rate(0, 1, 0.1, "linear")


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([], 1.0),
        ([3.0, 2.0, 1.0], 1.0),
        ([1.0, 1.0, 1.0], 0.1),  # the first is the best, then two epochs without an improvement
        ([1.0, 0.99995, 1.0], 0.1),  # less than min_delta does not count as an improvement
        ([1.0, 0.9, 1.0, 1.0], 0.1),
        ([1.0, 1.0, 0.5, 0.6], 1.0),  # an improvement restarts the count
        ([1.0, 1.0, 1.0, 1.0], 0.1),  # and so does a drop
        ([1.0, 1.0, 1.0, 1.0, 1.0], 0.01),
        ([math.nan, math.nan, 1.0], 0.1),
    ],
)
def test_drops_follow_keras(losses: list[float], expected: float) -> None:
    assert plateau_multiplier(losses, 2) == pytest.approx(expected)
    assert plateau_multiplier([1.0] * 10) == 1.0 and plateau_multiplier([1.0] * 11) == 0.1  # Keras's patience


@pytest.mark.parametrize(
    ("losses", "patience", "expected"),
    [
        ([], 1, False),
        ([1.0, 2.0], 1, True),
        ([1.0, 2.0], 2, False),
        ([1.0, 2.0, 0.9, 1.0], 2, False),
        ([1.0, 2.0, 0.9, 1.0, 0.9], 2, True),
        ([math.nan, math.nan], 2, True),
        ([1.0, 2.0, 3.0], 0, False),
    ],
)
def test_patience(losses: list[float], patience: int, expected: bool) -> None:
    assert out_of_patience(losses, patience) is expected


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
    assert penalty is not None and torch.equal(penalty(model), model.fc.weight.square().sum())


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


@pytest.mark.parametrize(
    ("arch", "excluded"),
    [
        ("test_vit", {"pos_embed", "cls_token"}),
        ("swin_tiny_patch4_window7_224", {"layers.0.blocks.0.attn.relative_position_bias_table"}),
        ("test_resnet", set()),
    ],
)
def test_what_timm_excludes_is_not_decayed(arch: str, excluded: set[str]) -> None:
    model = create_model(arch, 3)
    optimizer = make_optimizer("adamw", model, apply_rules(model, [("*", 1.0)]), weight_decay=0.05)
    decayed = {name for group in optimizer.param_groups if group["weight_decay"] for name in group["names"]}
    assert decayed and not excluded & decayed
    assert excluded <= {name for name, _ in model.named_parameters()}
