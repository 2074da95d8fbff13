"""Freezing: gradients, optimizer groups and batch-norm modes agree."""

import pytest
import torch
from torch import nn

from flowers_torch.errors import UsageError
from flowers_torch.models.factory import create_model
from flowers_torch.models.freeze import (
    Group,
    apply_rules,
    blocks,
    decay_by_layer,
    freeze_table,
    rules_for,
    set_train_mode,
)
from flowers_torch.models.heads import set_head
from flowers_torch.training.device import choose_runtime
from flowers_torch.training.optimization import make_optimizer
from flowers_torch.training.state import EpochMetrics, TrainState
from flowers_torch.training.step import train_epoch


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    network = create_model("test_resnet", num_classes=3)
    set_head(network, 3)
    return network


def names(model: nn.Module, train: str) -> set[str]:
    apply_rules(model, rules_for(model, train))
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_blocks_cover_every_parameter_once_in_order(model: nn.Module) -> None:
    found = [name for group in blocks(model).values() for name in group]
    assert found == [name for name, _ in model.named_parameters()]


def test_rules_for_head_all_and_a_block(model: nn.Module) -> None:
    everything = {name for name, _ in model.named_parameters()}
    assert names(model, "head") == {"fc.weight", "fc.bias"}
    assert names(model, "all") == everything
    from_layer3 = names(model, "layer3")
    assert from_layer3 == {name for name in everything if name.startswith(("layer3", "layer4", "fc"))}


def test_stage_1_of_the_original_tutorial_trains_two_dense_layers() -> None:
    with torch.device("meta"):
        network = create_model("inception_v3")
        set_head(network, 17, hidden=1024)
    apply_rules(network, rules_for(network, "head"))
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    assert trained == 2_098_176 + 17_425


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([("fc.*", 1.0)], "no rule of the stage covers parameter conv1"),
        ([("fcc.*", 1.0), ("*", 0.0)], "'fcc.*' decides no parameter"),
        ([("fc.*", 1.0), ("fc.weight", 0.0), ("*", 0.0)], "'fc.weight' decides no parameter"),
        ([("*", 0.0)], "every parameter is frozen"),
    ],
)
def test_rules_that_do_not_fit_the_network_are_errors(
    model: nn.Module, rules: list[tuple[str, float]], message: str
) -> None:
    with pytest.raises(UsageError, match=message.replace("*", r"\*")):
        apply_rules(model, rules)


def test_the_error_for_an_unknown_block_lists_the_blocks(model: nn.Module) -> None:
    with pytest.raises(UsageError, match=r"no block 'layer9'.*layer4"):
        rules_for(model, "layer9")


@pytest.mark.parametrize("batch_norm", ["trained", "all", "none"])
def test_batch_norm_buffers_before_and_after_an_epoch(model: nn.Module, batch_norm: str) -> None:
    groups = apply_rules(model, rules_for(model, "layer4"))
    runtime = choose_runtime("cpu", "fp32")
    state = TrainState(model, make_optimizer("sgd", model, groups), runtime.scaler(), runtime)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.eval()
    set_train_mode(model, batch_norm)
    batches = [(torch.randn(4, 3, 64, 64), torch.tensor([0, 1, 2, 0]), torch.arange(4))] * 3
    list(train_epoch(state, batches, EpochMetrics(), 0, lambda step: 0.1))
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    frozen_norms = {name for name in before if "running" in name and not name.startswith("layer4")}
    assert frozen_norms and (frozen_norms <= changed if batch_norm == "all" else not frozen_norms & changed)
    assert (
        not {name for name in changed if not name.startswith(("layer4", "fc"))}
        - frozen_norms
        - {name for name in before if batch_norm == "all" and "num_batches" in name}
    )
    assert ("layer4.0.bn1.running_mean" in changed) == (batch_norm != "none")
    assert {"layer4.0.bn1.weight", "fc.weight"} <= changed


def test_dropout_of_frozen_modules_is_off() -> None:
    network = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)), nn.Dropout(0.5), nn.Linear(4, 2))
    for parameter in network[0].parameters():
        parameter.requires_grad_(False)
    set_train_mode(network)
    assert [network[0][1].training, network[1].training, network[2].training] == [False, True, True]


def test_table_shows_rates_and_batch_norm_modes(model: nn.Module) -> None:
    groups = apply_rules(model, [("fc.*", 1.0), ("layer4.*", 0.1), ("*", 0.0)])
    set_train_mode(model)
    table = freeze_table(model, groups, lr=0.01)
    rows = [line.split() for line in table.splitlines()]
    assert rows[1][-2:] == ["frozen", "eval"]
    assert rows[2][0].startswith("layer4") and rows[2][-2:] == ["0.001", "train"]
    assert rows[3][0] == "fc" and rows[3][-2] == "0.01"


def test_rates_decay_from_the_head_to_the_stem() -> None:
    groups = [Group("stem", ("a",), 0.0), Group("one", ("b",), 1.0), Group("two", ("c",), 1.0)]
    groups += [Group("head", ("d",), 10.0), Group("head", ("e",), 1.0)]
    assert [group.multiplier for group in decay_by_layer(groups, 0.5)] == [0.0, 0.25, 0.5, 10.0, 1.0]
    assert decay_by_layer(groups, 1.0) == groups
