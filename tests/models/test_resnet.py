"""ResNets: parameter counts of Keras, shapes of the course's table, errors."""

import pytest
import torch
from torch import nn

from flowers_torch.errors import UsageError
from flowers_torch.models.blocks import BasicBlock
from flowers_torch.models.resnet import resnet50, resnet101, resnet152, resnext50, resnext101
from flowers_torch.models.resnet_cifar import CifarResNet, cifar_resnet
from flowers_torch.models.resnet_v2 import resnet50v2, resnet101v2, resnet152v2


def keras_count(network: nn.Module) -> tuple[int, int]:
    """Total and non-trainable parameters; Keras counts the moving statistics of batch norm too."""
    statistics = sum(b.numel() for name, b in network.named_buffers() if "running_" in name)
    return sum(p.numel() for p in network.parameters()) + statistics, statistics


@pytest.mark.parametrize(
    ("constructor", "total", "not_trainable"),
    [
        (resnet50, 25_636_712, 53_120),
        (resnet101, 44_707_176, 105_344),
        (resnet152, 60_419_944, 151_424),
        (resnet50v2, 25_613_800, 45_440),
        (resnet101v2, 44_675_560, 97_664),
        (resnet152v2, 60_380_648, 143_744),
        (resnext50, 25_097_128, 68_224),
        (resnext101, 44_315_560, 137_856),
    ],
)
def test_parameter_counts_of_keras(constructor, total: int, not_trainable: int) -> None:
    with torch.device("meta"):
        assert keras_count(constructor()) == (total, not_trainable)


@pytest.mark.parametrize(
    ("depth", "shortcut", "parameters"),
    [
        (20, "zero_pad", 269_722),
        (20, "none", 269_722),
        (20, "projection", 272_474),
        (56, "zero_pad", 853_018),
    ],
)
def test_thin_resnet_counts(depth: int, shortcut: str, parameters: int) -> None:
    network = cifar_resnet(depth=depth, shortcut=shortcut)
    assert sum(p.numel() for p in network.parameters()) == parameters
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear) and m.weight.shape[-1] != 1]
    assert len([m for m in layers if getattr(m, "kernel_size", None) != (1, 1)]) == depth


def test_course_resnet50_table() -> None:
    """Shapes and parameter counts that the course notebook prints for 64x64 images and 6 classes."""
    network = resnet50(6, lineage="course", input_size=64).eval()
    assert keras_count(network) == (23_600_006, 53_120)

    rows: dict[str, tuple[int, ...]] = {}
    for name, module in network.named_modules():
        module.register_forward_hook(lambda _, __, out, name=name: rows.__setitem__(name, tuple(out.shape[1:])))
    with torch.inference_mode():
        network(torch.zeros(1, 3, 64, 64))

    expected = {
        "pad": (3, 70, 70),
        "conv1": (64, 32, 32),
        "bn1": (64, 32, 32),
        "max_pool": (64, 15, 15),
        "stage2.0.main.conv1": (64, 15, 15),
        "stage2.0.main.conv3": (256, 15, 15),
        "stage2.0.shortcut.conv": (256, 15, 15),
        "stage2": (256, 15, 15),
        "stage3.0.main.conv1": (128, 8, 8),
        "stage3.0.shortcut.conv": (512, 8, 8),
        "stage3": (512, 8, 8),
        "stage4.5.main.conv3": (1024, 4, 4),
        "stage4": (1024, 4, 4),
        "stage5.0.main.conv1": (512, 2, 2),
        "stage5.2.main.bn3": (2048, 2, 2),
        "stage5": (2048, 2, 2),
        "head.global_pool": (2048, 1, 1),
        "head.fc": (6,),
    }
    assert {name: rows[name] for name in expected} == expected

    parameters = {
        "conv1": 9472,
        "stage2.0.main.conv1": 4160,
        "stage2.0.main.conv2": 36928,
        "stage2.0.main.conv3": 16640,
        "stage2.0.shortcut.conv": 16640,
        "stage2.1.main.conv1": 16448,
        "stage4.3.main.conv2": 590080,
        "stage4.3.main.conv3": 263168,
        "stage5.0.main.conv1": 524800,
        "stage5.0.shortcut.conv": 2099200,
        "stage5.1.main.conv2": 2359808,
        "head.fc": 12294,
    }
    counted = {n: sum(p.numel() for p in network.get_submodule(n).parameters()) for n in parameters}
    assert counted == parameters
    assert [len(getattr(network, f"stage{i}")) for i in (2, 3, 4, 5)] == [3, 4, 6, 3]


def test_lineages_give_different_logits_with_the_same_weights() -> None:
    torch.manual_seed(0)
    keras, course = (resnet50(3, lineage=name, global_pool="avg").eval() for name in ("keras", "course"))
    course.load_state_dict(keras.state_dict())
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        difference = (keras(images) - course(images)).abs().max()
    assert difference > 1e-3


def test_preactivation_stem_pads_with_zeros_before_pooling() -> None:
    network = resnet50v2(0, global_pool="")
    maps = -torch.ones(1, 64, 8, 8)
    pooled = network.max_pool(maps)
    assert (pooled[..., 0, :] == 0).all()  # the maximum of the padding and -1
    assert (pooled[..., 1:, 1:] == -1).all()


def test_plain_network_has_the_same_layers() -> None:
    residual, plain = cifar_resnet(depth=14), cifar_resnet(depth=14, shortcut="none")
    plain.load_state_dict(residual.state_dict())
    assert [m.shortcut is None for m in plain.modules() if isinstance(m, BasicBlock)] == [True] * 6


@pytest.mark.parametrize("depth", [2, 9, 21])
def test_impossible_depths_are_errors(depth: int) -> None:
    with pytest.raises(UsageError, match=f"6n \\+ 2 layers, not {depth}"):
        CifarResNet(depth=depth)


def test_unknown_lineage_is_an_error() -> None:
    with pytest.raises(UsageError, match="unknown lineage 'caffe' of a ResNet; fix: use one of keras, torch"):
        resnet50(lineage="caffe")
