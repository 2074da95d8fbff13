"""A fused view answers, learns and follows the photos as its network does."""

import copy

import pytest
import timm
import torch
from torch import Tensor, nn

from flowers_torch.accelerate import fused_step as module_under_test
from flowers_torch.accelerate.conv_bn import noise
from flowers_torch.accelerate.fused_step import FusedUnit, fuse
from flowers_torch.models.factory import create_model
from flowers_torch.models.freeze import apply_rules, rules_for, set_train_mode
from flowers_torch.models.heads import main_and_auxiliary


def settled(model: nn.Module) -> nn.Module:
    """With statistics of batch norm that folding must not overlook, and without chance."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.copy_(torch.randn(module.running_mean.shape, generator=generator) / 10)
            module.running_var.copy_(torch.rand(module.running_var.shape, generator=generator) + 0.5)
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model.to(memory_format=torch.channels_last)


def images(size: int = 64, count: int = 4) -> Tensor:
    made = torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(2))
    return made.contiguous(memory_format=torch.channels_last)


def gradients(network: nn.Module, model: nn.Module, inputs: Tensor) -> dict[str, Tensor]:
    """Of a model's parameters, where a view or the model itself is called."""
    model.zero_grad(set_to_none=True)
    logits, auxiliary = main_and_auxiliary(network(inputs))
    sum(answer.float().square().sum() for answer in (logits, *auxiliary)).backward()  # type: ignore[union-attr]
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def deviation(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    assert found.keys() == expected.keys()
    total = torch.cat([value.flatten() for value in expected.values()])
    return float((torch.cat([found[name].flatten() for name in expected]) - total).norm() / total.norm())


QUICK = [
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
    ("arch", "size"), [*QUICK, *(pytest.param(*network, marks=pytest.mark.slow) for network in SLOW)]
)
def test_gradients_and_statistics_are_those_of_the_network(arch: str, size: int, batch_norm: str) -> None:
    torch.manual_seed(0)
    model = settled(create_model(arch, 3))
    apply_rules(model, rules_for(model, "all"))
    set_train_mode(model, batch_norm)
    other, inputs = copy.deepcopy(model), images(size)
    view = fuse(model, noise(size))
    found, expected = gradients(view, model, inputs), gradients(other, other, inputs)
    assert deviation(found, expected) < 1e-3
    for name, value in other.named_buffers():
        torch.testing.assert_close(model.get_buffer(name), value, rtol=1e-4, atol=1e-5, msg=name)
    if batch_norm == "none":
        assert any(isinstance(module, FusedUnit) for module in view.modules())


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kernel", "dilation"), [(3, 1), (5, 1), ((3, 7), 1), (7, 2)])
def test_depthwise_gradients(
    kernel: int | tuple[int, int], dilation: int, stride: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    rows, columns = (kernel, kernel) if isinstance(kernel, int) else kernel
    padding = (dilation * (rows // 2), dilation * (columns // 2))
    conv = nn.Conv2d(8, 8, kernel, stride, padding, dilation, groups=8)
    inputs = torch.randn(2, 8, 19, 17).contiguous(memory_format=torch.channels_last).requires_grad_()
    unit = FusedUnit(conv, None, nn.ReLU6)
    found, expected = [], []
    for call, into in ((unit, found), (lambda maps: conv(maps).clamp(0, 6), expected)):
        conv.zero_grad(set_to_none=True)
        inputs.grad = None
        autocast = torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16 and call is unit)
        with autocast:
            answer = call(inputs)
        answer.float().square().sum().backward()
        assert conv.weight.grad is not None and conv.bias is not None and conv.bias.grad is not None
        assert inputs.grad is not None
        into += [inputs.grad.clone(), conv.weight.grad.clone(), conv.bias.grad.clone()]
    for one, other in zip(found, expected, strict=True):
        assert (one - other).norm() / other.norm() < (1e-5 if dtype is torch.float32 else 0.03)


def test_bf16_learns_the_same_direction() -> None:
    model = settled(timm.create_model("tf_efficientnet_lite0", num_classes=3))
    set_train_mode(model, "none")
    view, inputs = fuse(model, noise(64)), images()
    expected = gradients(model, model, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        plain, found = gradients(model, model, inputs), gradients(view, model, inputs)
    assert 1e-3 < deviation(found, expected) < 1.5 * deviation(plain, expected) + 0.01


def test_frozen_parts_get_no_gradient_and_the_parameters_are_the_networks_own() -> None:
    model = settled(create_model("resnet50", 3))
    apply_rules(model, rules_for(model, "stage5"))
    set_train_mode(model)
    view = fuse(model, noise(64))
    assert set(view.parameters()) == set(model.parameters())
    names = {name.split(".")[0] for name in gradients(view, model, images())}
    assert names == {"stage5", "head"}
    with torch.no_grad():
        model.conv1.weight.mul_(2)  # type: ignore[operator, union-attr]
        expected = model.eval()(images())
        torch.testing.assert_close(view.eval()(images()), expected, rtol=1e-3, atol=1e-4)


def test_modes_are_those_of_the_network_before_and_after() -> None:
    model = settled(create_model("resnet50", 3))
    apply_rules(model, rules_for(model, "stage5"))
    set_train_mode(model)
    before = [module.training for module in model.modules()]
    view = fuse(model, noise(64))
    assert [module.training for module in model.modules()] == before
    assert view.training and not view.stage4.training and view.stage5.training  # type: ignore[union-attr]


class Shortcut(nn.Module):
    """The output of its convolution goes around the norm too, which nothing but the answer tells."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, maps: Tensor) -> Tensor:
        maps = self.conv(maps)
        return maps + self.norm(maps)


def test_where_nothing_can_be_fused_the_network_itself_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    shortcut = settled(Shortcut()).eval()
    assert fuse(shortcut, noise(32)) is shortcut
    linear = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 2))
    assert fuse(linear, noise(32)) is linear

    def refuse(*arguments: object) -> Tensor:
        raise RuntimeError("no mkldnn")

    monkeypatch.setattr(module_under_test, "convolve", refuse)
    resnet = settled(create_model("resnet50", 3)).eval()
    assert fuse(resnet, noise(64)) is resnet


def test_norms_that_drop_are_left_alone() -> None:
    model = settled(timm.create_model("tf_efficientnet_lite0", num_classes=3)).eval()
    model.bn1.drop = nn.Dropout2d(0.5)  # type: ignore[union-attr]
    view = fuse(model, noise(64))
    assert isinstance(view.bn1, nn.BatchNorm2d) and not isinstance(view.conv_stem, FusedUnit)
    assert isinstance(view.conv_head, FusedUnit)
