"""Folded copies answer as their networks do, and a network that cannot be folded stays as it is."""

import pytest
import timm
import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn

from flowers_torch.accelerate.conv_bn import FusedConv2d, fold
from flowers_torch.models.factory import create_model


def settled(model: nn.Module) -> nn.Module:
    """In inference mode, with statistics of batch norm that folding must not overlook."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.copy_(torch.randn(module.running_mean.shape, generator=generator) / 10)
            module.running_var.copy_(torch.rand(module.running_var.shape, generator=generator) + 0.5)
    return model.eval().to(memory_format=torch.channels_last)


def noise(size: int = 64) -> Tensor:
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    return images.contiguous(memory_format=torch.channels_last)


def count(model: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(module, kind) for module in model.modules())


@pytest.mark.parametrize(
    ("arch", "size"),
    [("resnet50", 64), ("mobilenet", 64), ("tf_efficientnet_lite0", 64), ("inception_v3", 96)],
)
def test_the_copy_answers_the_same(arch: str, size: int) -> None:
    model, images = settled(create_model(arch, num_classes=3)), noise(size)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    made = fold(model, lambda network: network(images))
    with torch.no_grad():
        torch.testing.assert_close(made(images), model(images), rtol=1e-3, atol=1e-5)
    assert made is not model and count(made, nn.BatchNorm2d) == 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_activations_of_timm_and_of_sequences_are_fused() -> None:
    images = noise()
    ours = settled(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True)))
    made = fold(ours, lambda network: network(images))
    assert [type(module) for module in made] == [FusedConv2d, nn.Identity, nn.Identity]  # type: ignore[arg-type]
    theirs = settled(timm.create_model("tf_efficientnet_lite0"))
    folded = fold(theirs, lambda network: network(images))
    assert count(folded, FusedConv2d) == count(theirs, nn.Conv2d)
    assert count(folded, nn.ReLU6) == 0


@pytest.mark.parametrize(("height", "width"), [(12, 12), (13, 13), (12, 13), (3, 2)])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [2, 3, 5])
def test_same_padding_on_the_way_is_that_of_timm(
    kernel: int, stride: int, dilation: int, height: int, width: int
) -> None:
    torch.manual_seed(0)
    conv = Conv2dSame(4, 4, kernel, stride, groups=4, dilation=dilation)
    images = torch.randn(2, 4, height, width).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        made = FusedConv2d(conv, nn.ReLU(), torch.float32)(images)
        torch.testing.assert_close(made, conv(images).relu())


def test_maps_are_not_copied_to_be_padded(monkeypatch: pytest.MonkeyPatch) -> None:
    images = noise()
    model = settled(timm.create_model("tf_efficientnet_lite0"))
    made = fold(model, lambda network: network(images))
    monkeypatch.setattr("flowers_torch.accelerate.conv_bn.pad_same", None)
    with torch.no_grad():
        torch.testing.assert_close(made(images), model(images), rtol=1e-3, atol=1e-5)


def test_bf16_is_fused_also_beside_layers_that_are_not() -> None:
    """Squeeze-and-excitation has convolutions without batch norm, in float32, behind fused ones in bf16."""
    model, images = settled(timm.create_model("mobilenetv3_small_050")), noise()
    made = fold(model, lambda network: network(images), torch.bfloat16)
    if not count(made, FusedConv2d):  # as on a processor without bf16
        plain = settled(timm.create_model("tf_efficientnet_lite0"))
        assert not count(fold(plain, lambda network: network(images), torch.bfloat16), FusedConv2d)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert made(images).isfinite().all()


def test_bf16_is_as_near_as_bf16_is() -> None:
    model, images = settled(timm.create_model("tf_efficientnet_lite0")), noise()
    made = fold(model, lambda network: network(images), torch.bfloat16)
    with torch.no_grad():
        expected = model(images)
        with torch.autocast("cpu", torch.bfloat16):
            answer = made(images)
    if count(made, FusedConv2d):  # not where the processor has no bf16
        assert 1e-4 < (answer.float() - expected).norm() / expected.norm() < 5e-2
        assert {m.weight.dtype for m in made.modules() if isinstance(m, FusedConv2d)} == {torch.bfloat16}


class Shortcut(nn.Module):
    """The output of its convolution goes around the norm too, which nothing but the answer tells."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        return maps + self.norm(maps)


class Again(nn.Module):
    """One activation serves two places, and one of two convolutions is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 3), nn.Conv2d(3, 4, 3)
        self.norm1, self.norm2, self.relu = nn.BatchNorm2d(3), nn.BatchNorm2d(4), nn.ReLU()

    def forward(self, images: Tensor) -> Tensor:
        maps = self.relu(self.norm1(self.first(self.first(images))) - 1)
        return self.relu(self.norm2(self.second(maps)))


def test_a_shortcut_around_the_norm_keeps_the_network() -> None:
    model, images = settled(Shortcut()), noise()
    assert fold(model, lambda network: network(images)) is model


def test_what_is_used_twice_stays() -> None:
    model, images = settled(Again()), noise()
    made = fold(model, lambda network: network(images))
    assert isinstance(made.norm1, nn.BatchNorm2d) and isinstance(made.relu, nn.ReLU)
    assert isinstance(made.second, FusedConv2d) and isinstance(made.norm2, nn.Identity)
    with torch.no_grad():
        torch.testing.assert_close(made(images), model(images), rtol=1e-4, atol=1e-6)


def test_a_norm_without_statistics_stays() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)).eval()
    images = noise()
    made = fold(model, lambda network: network(images))
    assert isinstance(made[1], nn.BatchNorm2d)  # type: ignore[index]


def test_without_onednn_it_is_folded_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: FusedConv2d, maps: Tensor) -> Tensor:
        raise RuntimeError("no mkldnn")

    monkeypatch.setattr(FusedConv2d, "forward", refuse)
    model, images = settled(timm.create_model("tf_efficientnet_lite0")), noise()
    made = fold(model, lambda network: network(images), torch.bfloat16)
    assert count(made, nn.BatchNorm2d) == count(made, FusedConv2d) == 0
    with torch.no_grad():
        torch.testing.assert_close(made(images), model(images), rtol=1e-3, atol=1e-4)


def test_the_copy_is_tried_out_in_full_float32() -> None:
    """A GPU's ten bits of mantissa would make every folded copy a liar."""
    seen, places = [], (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [place.allow_tf32 for place in places]  # type: ignore[union-attr]

    def forward(network: nn.Module) -> Tensor:
        seen.append([place.allow_tf32 for place in places])  # type: ignore[union-attr]
        return network(noise())

    model = settled(create_model("test_resnet"))
    assert fold(model, forward) is not model
    assert seen and not any(map(any, seen))
    assert [place.allow_tf32 for place in places] == before  # type: ignore[union-attr]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_batch_norm_is_folded_on_a_gpu() -> None:
    model = settled(create_model("test_resnet")).cuda()
    made = fold(model, lambda network: network(noise().cuda()), torch.bfloat16)
    assert made is not model and count(made, nn.BatchNorm2d) < count(model, nn.BatchNorm2d)
