"""A fused view has the output, the gradients and the statistics of its network."""

import copy
from collections.abc import Callable

import pytest
import timm
import torch
from torch import Tensor, nn

from flowers_torch.accelerate import fused_step
from flowers_torch.accelerate.depthwise import convolution_gradients, depthwise_gradients
from flowers_torch.accelerate.fused_step import FusedUnit, fused_view
from flowers_torch.files.system import onednn_computes_bf16
from flowers_torch.models.factory import create_model
from flowers_torch.models.freeze import apply_rules, rules_for, set_train_mode
from flowers_torch.models.heads import main_and_auxiliary
from flowers_torch.models.split_model import example_inputs

Settle = Callable[[nn.Module], nn.Module]


def images(size: int = 64, count: int = 4) -> Tensor:
    batch = torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(2))
    return batch.contiguous(memory_format=torch.channels_last)


def gradients(network: nn.Module, model: nn.Module, inputs: Tensor) -> dict[str, Tensor]:
    """Of the parameters of a model, from a call of its view or of itself."""
    model.zero_grad(set_to_none=True)
    logits, auxiliary = main_and_auxiliary(network(inputs))
    sum(output.float().square().sum() for output in (logits, *auxiliary)).backward()  # type: ignore[union-attr]
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def deviation(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    assert found.keys() == expected.keys()
    total = torch.cat([value.flatten() for value in expected.values()])
    return float((torch.cat([found[name].flatten() for name in expected]) - total).norm() / total.norm())


FAST = [
    ("mobilenet", 64),
    ("tf_efficientnet_lite0", 64),
    ("googlenet", 64),
    ("mobilenetv3_small_100", 64),
    ("convnext_atto", 64),
]
SLOW = [
    ("resnet50", 64),
    ("resnet50v2", 64),
    ("mobilenet_v2", 64),
    ("inception_v3", 96),
    ("xception", 71),
    ("densenet121", 64),
    ("nasnet_mobile", 64),
    ("efficientnet_b0", 64),
    ("resnext26ts", 64),
]


@pytest.mark.parametrize("batch_norm", ["trained", "none"])
@pytest.mark.parametrize(
    ("arch", "size"), [*FAST, *(pytest.param(*network, marks=pytest.mark.slow) for network in SLOW)]
)
def test_gradients_and_statistics_are_those_of_the_network(
    arch: str, size: int, batch_norm: str, settled: Settle
) -> None:
    torch.manual_seed(0)
    model = settled(create_model(arch, 3))
    apply_rules(model, rules_for(model, "all"))
    set_train_mode(model, batch_norm)
    other, inputs = copy.deepcopy(model), images(size)
    view = fused_view(model, example_inputs(size))
    found, expected = gradients(view, model, inputs), gradients(other, other, inputs)
    assert deviation(found, expected) < 1e-3
    for name, value in other.named_buffers():
        torch.testing.assert_close(model.get_buffer(name), value, rtol=1e-4, atol=1e-5, msg=name)
    if batch_norm == "none":
        assert any(isinstance(module, FusedUnit) for module in view.modules())


@pytest.mark.skipif(not onednn_computes_bf16(), reason="oneDNN has no bf16 here")
def test_gradients_in_bf16_have_the_same_direction(settled: Settle) -> None:
    model = settled(timm.create_model("tf_efficientnet_lite0", num_classes=3))
    set_train_mode(model, "none")
    view, inputs = fused_view(model, example_inputs(64)), images()
    expected = gradients(model, model, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        plain, found = gradients(model, model, inputs), gradients(view, model, inputs)
    assert 1e-3 < deviation(found, expected) < 1.5 * deviation(plain, expected) + 0.01


def test_the_view_shares_parameters_and_frozen_ones_get_no_gradient(settled: Settle) -> None:
    model = settled(create_model("resnet50", 3))
    apply_rules(model, rules_for(model, "stage5"))
    set_train_mode(model)
    view = fused_view(model, example_inputs(64))
    assert set(view.parameters()) == set(model.parameters())
    names = {name.split(".")[0] for name in gradients(view, model, images())}
    assert names == {"stage5", "head"}
    with torch.no_grad():
        model.conv1.weight.mul_(2)  # type: ignore[operator, union-attr]
        expected = model.eval()(images())
        torch.testing.assert_close(view.eval()(images()), expected, rtol=1e-3, atol=1e-4)


def test_the_modes_of_the_network_stay(settled: Settle) -> None:
    model = settled(create_model("resnet50", 3))
    apply_rules(model, rules_for(model, "stage5"))
    set_train_mode(model)
    before = [module.training for module in model.modules()]
    view = fused_view(model, example_inputs(64))
    assert [module.training for module in model.modules()] == before
    assert view.training and not view.stage4.training and view.stage5.training  # type: ignore[union-attr]


class Shortcut(nn.Module):
    """The output of its convolution also bypasses the norm. Only the output of the network shows that."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, maps: Tensor) -> Tensor:
        maps = self.conv(maps)
        return maps + self.norm(maps)


@pytest.mark.parametrize("error", [RuntimeError, NotImplementedError])
def test_where_nothing_can_be_fused_the_network_itself_is_called(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch, settled: Settle
) -> None:
    shortcut = settled(Shortcut()).eval()
    assert fused_view(shortcut, example_inputs(32)) is shortcut
    linear = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 2))
    assert fused_view(linear, example_inputs(32)) is linear

    def refuse(*arguments: object) -> Tensor:
        raise error("no mkldnn")

    monkeypatch.setattr(fused_step, "convolve", refuse)
    resnet = settled(create_model("resnet50", 3)).eval()
    assert fused_view(resnet, example_inputs(64)) is resnet


def test_norms_that_drop_stay(settled: Settle) -> None:
    model = settled(timm.create_model("tf_efficientnet_lite0", num_classes=3)).eval()
    model.bn1.drop = nn.Dropout2d(0.5)  # type: ignore[union-attr]
    view = fused_view(model, example_inputs(64))
    assert isinstance(view.bn1, nn.BatchNorm2d) and not isinstance(view.conv_stem, FusedUnit)
    assert isinstance(view.conv_head, FusedUnit)


def test_the_two_tricks_are_independent(settled: Settle) -> None:
    torch.manual_seed(3)  # a value near a bound of ReLU6 would change the gradient
    model = settled(timm.create_model("tf_efficientnet_lite0", num_classes=3)).eval()
    inputs = example_inputs(64)
    depthwise = fused_view(model, inputs, fuse=False)
    assert isinstance(depthwise.bn1, nn.BatchNorm2d) and isinstance(depthwise.conv_stem, nn.Conv2d)
    units = [module for module in depthwise.modules() if isinstance(module, FusedUnit)]
    assert units and all(unit.norm is None and unit.gradients is depthwise_gradients for unit in units)
    fused = fused_view(model, inputs, depthwise=False)
    units = [module for module in fused.modules() if isinstance(module, FusedUnit)]
    assert units and all(unit.norm and unit.gradients is convolution_gradients for unit in units)
    other = copy.deepcopy(model)
    for view in (depthwise, fused):
        assert deviation(gradients(view, model, inputs), gradients(other, other, inputs)) < 1e-3
