"""Fused copies have the output of their networks, and networks that cannot be fused stay as they are."""

from collections.abc import Callable

import pytest
import timm
import torch
from torch import Tensor, nn

from flowers_torch.accelerate import conv_bn
from flowers_torch.accelerate.conv_bn import FusedConv2d, fuse_conv_bn
from flowers_torch.models.factory import create_model
from flowers_torch.models.split_model import example_inputs
from flowers_torch.models.tf_layers import Conv2dSame

Settle = Callable[[nn.Module], nn.Module]


def images(size: int = 64) -> Tensor:
    return example_inputs(size).contiguous(memory_format=torch.channels_last)


def fused(model: nn.Module, dtype: torch.dtype = torch.float32, size: int = 64) -> nn.Module:
    return fuse_conv_bn(model.eval(), lambda network: network(images(size)), dtype)


def count(model: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(module, kind) for module in model.modules())


@pytest.mark.parametrize(
    ("arch", "size"),
    [
        ("resnet50", 64),
        ("mobilenet", 64),
        ("tf_efficientnet_lite0", 64),
        ("timm:tf_efficientnet_lite0", 64),
        ("inception_v3", 96),
    ],
)
def test_the_copy_has_the_same_output(arch: str, size: int, settled: Settle) -> None:
    model = settled(create_model(arch, num_classes=3))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    copy = fused(model, size=size)
    with torch.no_grad():
        torch.testing.assert_close(copy(images(size)), model(images(size)), rtol=1e-3, atol=1e-5)
    assert copy is not model and count(copy, nn.BatchNorm2d) == 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("arch", ["tf_efficientnet_lite0", "timm:tf_efficientnet_lite0"])
def test_activations_in_norms_and_of_sequences_are_fused(arch: str, settled: Settle) -> None:
    sequence = settled(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True)))
    assert [type(module) for module in fused(sequence).children()] == [FusedConv2d, nn.Identity, nn.Identity]
    model = settled(create_model(arch))
    copy = fused(model)
    assert count(copy, FusedConv2d) == count(model, nn.Conv2d)
    assert count(copy, nn.ReLU6) == 0


@pytest.mark.parametrize(("height", "width"), [(12, 12), (13, 13), (12, 13), (3, 2)])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [2, 3, 5])
@pytest.mark.parametrize("kind", [Conv2dSame, timm.layers.Conv2dSame])
def test_same_padding_is_that_of_timm(
    kind: type[nn.Conv2d], kernel: int, stride: int, dilation: int, height: int, width: int
) -> None:
    torch.manual_seed(0)
    conv = kind(4, 4, kernel, stride, groups=4, dilation=dilation)
    maps = torch.randn(2, 4, height, width).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        output = FusedConv2d(conv, nn.ReLU(), torch.float32)(maps)
        torch.testing.assert_close(output, conv(maps).relu())
        theirs = timm.layers.conv2d_same(maps, conv.weight, conv.bias, conv.stride, 0, conv.dilation, 4)
        torch.testing.assert_close(conv(maps), theirs)


def test_maps_are_not_copied_for_padding(monkeypatch: pytest.MonkeyPatch, settled: Settle) -> None:
    model = settled(timm.create_model("tf_efficientnet_lite0"))
    copy = fused(model)
    monkeypatch.setattr(conv_bn, "pad_same", None)
    with torch.no_grad():
        torch.testing.assert_close(copy(images()), model(images()), rtol=1e-3, atol=1e-5)


def test_bf16_is_fused_beside_layers_that_are_not(settled: Settle) -> None:
    """Squeeze-and-excitation has float32 convolutions without batch norm behind fused ones in bf16."""
    copy = fused(settled(timm.create_model("mobilenetv3_small_050")), torch.bfloat16)
    if not count(copy, FusedConv2d):  # a processor without bf16
        plain = settled(timm.create_model("tf_efficientnet_lite0"))
        assert not count(fused(plain, torch.bfloat16), FusedConv2d)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert copy(images()).isfinite().all()


def test_bf16_deviates_as_little_as_bf16_does(settled: Settle) -> None:
    model = settled(timm.create_model("tf_efficientnet_lite0"))
    copy = fused(model, torch.bfloat16)
    with torch.no_grad():
        expected = model(images())
        with torch.autocast("cpu", torch.bfloat16):
            output = copy(images())
    if count(copy, FusedConv2d):  # not on a processor without bf16
        assert 1e-4 < (output.float() - expected).norm() / expected.norm() < 5e-2
        assert {m.weight.dtype for m in copy.modules() if isinstance(m, FusedConv2d)} == {torch.bfloat16}


class Shortcut(nn.Module):
    """The output of its convolution also bypasses the norm. Only the output of the network shows that."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x + self.norm(x)


class Twice(nn.Module):
    """One activation is used in two places, and one of two convolutions is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 3), nn.Conv2d(3, 4, 3)
        self.norm1, self.norm2, self.relu = nn.BatchNorm2d(3), nn.BatchNorm2d(4), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm1(self.first(self.first(x))) - 1)
        return self.relu(self.norm2(self.second(x)))


def test_a_shortcut_around_the_norm_keeps_the_network(settled: Settle) -> None:
    model = settled(Shortcut())
    assert fused(model) is model


def test_layers_used_twice_stay(settled: Settle) -> None:
    model = settled(Twice())
    copy = fused(model)
    assert isinstance(copy.norm1, nn.BatchNorm2d) and isinstance(copy.relu, nn.ReLU)
    assert isinstance(copy.second, FusedConv2d) and isinstance(copy.norm2, nn.Identity)
    with torch.no_grad():
        torch.testing.assert_close(copy(images()), model(images()), rtol=1e-4, atol=1e-6)


def test_a_norm_without_statistics_stays() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False))
    assert isinstance(fused(model).get_submodule("1"), nn.BatchNorm2d)


@pytest.mark.parametrize("error", [RuntimeError, NotImplementedError])
def test_without_onednn_only_batch_norm_is_fused(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch, settled: Settle
) -> None:
    """A processor refuses the operation by a RuntimeError; other builds of torch do not have it."""

    def refuse(self: FusedConv2d, maps: Tensor) -> Tensor:
        raise error("no mkldnn")

    monkeypatch.setattr(FusedConv2d, "forward", refuse)
    model = settled(timm.create_model("tf_efficientnet_lite0"))
    copy = fused(model, torch.bfloat16)
    assert count(copy, nn.BatchNorm2d) == count(copy, FusedConv2d) == 0
    with torch.no_grad():
        torch.testing.assert_close(copy(images()), model(images()), rtol=1e-3, atol=1e-4)


def test_the_copy_is_compared_in_full_float32(settled: Settle) -> None:
    """With the ten bits of mantissa of TF32 every copy would deviate."""
    allowed, backends = [], (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [backend.allow_tf32 for backend in backends]

    def forward(network: nn.Module) -> Tensor:
        allowed.append([backend.allow_tf32 for backend in backends])
        output: Tensor = network(images())
        return output

    model = settled(create_model("test_resnet")).eval()
    assert fuse_conv_bn(model, forward) is not model
    assert allowed and not any(map(any, allowed))
    assert [backend.allow_tf32 for backend in backends] == before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_batch_norm_is_fused_on_a_gpu(settled: Settle) -> None:
    model = settled(create_model("test_resnet")).cuda().eval()
    copy = fuse_conv_bn(model, lambda network: network(images().cuda()), torch.bfloat16)
    assert copy is not model and count(copy, nn.BatchNorm2d) < count(model, nn.BatchNorm2d)
