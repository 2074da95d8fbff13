"""Inception modules, auxiliary classifiers, and multiplications against published numbers."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from flowers_torch.models.classic import alexnet, vgg16
from flowers_torch.models.inception import ConvUnit, InceptionModule, Widths, googlenet
from flowers_torch.models.resnet import resnet50


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_parameter_counts_of_the_paper() -> None:
    with torch.device("meta"):
        assert parameters(googlenet(batch_norm=False)) == 6_998_552
        assert parameters(googlenet(batch_norm=False, aux_logits=True)) == 13_378_280


def test_module_concatenates_its_branches_in_order() -> None:
    module = InceptionModule(4, Widths(1, 2, 3, 4, 5, 6)).eval()
    x = torch.randn(2, 4, 7, 9)
    stacked = module(x)
    assert stacked.shape == (2, Widths(1, 2, 3, 4, 5, 6).total, 7, 9)
    branches = [module.branch1, module.branch2, module.branch3, module.branch4]
    assert [branch(x).shape[1] for branch in branches] == [1, 3, 5, 6]
    torch.testing.assert_close(stacked[:, 4:9], module.branch3(x))


def test_a_1x1_convolution_is_a_dense_layer_at_each_pixel() -> None:
    unit = ConvUnit(5, 3, 1, batch_norm=False)
    x = torch.randn(2, 5, 4, 4)
    weight = unit.conv.weight[:, :, 0, 0]
    dense = torch.relu(x.permute(0, 2, 3, 1) @ weight.T + unit.conv.bias)
    torch.testing.assert_close(unit(x), dense.permute(0, 3, 1, 2))


def test_auxiliary_logits_in_training_and_after_a_reset() -> None:
    network = googlenet(4, aux_logits=True)
    images = torch.randn(2, 3, 64, 64)
    assert [tuple(logits.shape) for logits in network.train()(images)] == [(2, 4)] * 3
    assert network.eval()(images).shape == (2, 4)
    network.reset_classifier(6)
    assert [tuple(logits.shape) for logits in network.train()(images)] == [(2, 6)] * 3


def count_multiplications(network: nn.Module, shape: tuple[int, ...]) -> int:
    """For one image; torch counts each multiplication and its addition as two FLOPs."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(torch.empty(1, *shape, device="meta"))
    return counter.get_total_flops() // 2


def test_the_two_figures_of_the_bottleneck() -> None:
    with torch.device("meta"):
        direct = ConvUnit(192, 32, 5)
        bottleneck = nn.Sequential(ConvUnit(192, 16, 1), ConvUnit(16, 32, 5))
    assert count_multiplications(direct, (192, 28, 28)) == 120_422_400
    assert count_multiplications(bottleneck, (192, 28, 28)) == 2_408_448 + 10_035_200 == 12_443_648


@pytest.mark.parametrize(
    ("build", "millions"),
    [
        (vgg16, 15_470.3),  # "15.5 GFLOPs" in many tables
        (lambda: resnet50(lineage="torch"), 4_089.2),  # "4.1"
        (alexnet, 724.4),  # "724 M"
    ],
)
def test_multiplications_of_whole_networks(build, millions: float) -> None:
    with torch.device("meta"):
        network = build()
    assert count_multiplications(network, (3, 224, 224)) / 1e6 == pytest.approx(millions, abs=0.05)
