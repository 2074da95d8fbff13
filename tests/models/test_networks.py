"""The contract of a network, checked for every network of the registry."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from flowers_torch.errors import UsageError
from flowers_torch.files.tensors import safe_load, safe_save
from flowers_torch.models.classic import alexnet, lenet5, lenet5_relu, vgg16, vgg19
from flowers_torch.models.densenet import DenseNet
from flowers_torch.models.factory import create_model
from flowers_torch.models.freeze import blocks
from flowers_torch.models.heads import main_and_auxiliary, set_head
from flowers_torch.models.nasnet import NASNet
from flowers_torch.models.network import MlpHead, Network
from flowers_torch.models.registry import REGISTRY
from flowers_torch.models.resnet import resnet50
from flowers_torch.models.resnet_v2 import resnet50v2
from flowers_torch.models.small import cifar10_net, happy_blocks, happy_model, small_convnet


class Case(NamedTuple):
    shape: tuple[int, int, int]  # of the smallest images
    features: tuple[int, int, int]  # shape of the feature map
    options: dict[str, Any] = {}
    build: Callable[..., nn.Module] | None = None  # of a network that is not registered


# The first word of a key is the registered name.
CASES = {
    "lenet5": Case((1, 32, 32), (16, 5, 5)),
    "lenet5 sigmoid": Case((1, 32, 32), (16, 5, 5), {"activation": "sigmoid"}),
    "lenet5_relu": Case((1, 32, 32), (16, 5, 5)),
    "alexnet": Case((3, 67, 67), (256, 1, 1), {"input_size": 67, "response_norm": True}),
    "vgg16": Case((3, 32, 32), (512, 1, 1), {"input_size": 32, "hidden": (96, 64)}),
    "vgg19": Case((3, 32, 32), (512, 1, 1), {"input_size": 32}),
    "happy_model": Case((3, 64, 64), (32, 32, 32)),
    "happy_model featurewise": Case((3, 64, 64), (32, 32, 32), {"standardize": "featurewise"}),
    "happy_blocks": Case((3, 64, 64), (32, 4, 4)),
    "small_convnet": Case((3, 60, 60), (64, 5, 5), {"input_size": 60}),
    "cifar10_net": Case((3, 32, 32), (64, 6, 6)),
    "cifar10_net zca": Case((3, 12, 12), (64, 1, 1), {"standardize": "zca", "input_size": 12}),
    "cifar10_net samplewise": Case((3, 32, 32), (64, 6, 6), {"standardize": "samplewise"}),
    "cifar_resnet": Case((3, 32, 32), (64, 8, 8), {"depth": 8}),
    "cifar_resnet projection": Case((3, 30, 30), (64, 8, 8), {"shortcut": "projection"}),
    "cifar_resnet plain": Case((3, 32, 32), (64, 8, 8), {"depth": 8, "shortcut": "none"}),
    "googlenet": Case((3, 40, 40), (1024, 2, 2)),
    "googlenet auxiliary": Case((3, 64, 64), (1024, 2, 2), {"aux_logits": True, "batch_norm": False}),
    "resnet50": Case((3, 40, 40), (2048, 2, 2)),
    "resnet50 torch": Case((3, 40, 40), (2048, 2, 2), {"lineage": "torch"}),
    "resnet50_course": Case((3, 64, 64), (2048, 2, 2)),
    "resnet50v2": Case((3, 40, 40), (2048, 2, 2)),
    "resnext50": Case((3, 40, 40), (2048, 2, 2)),
    "resnet101": Case((3, 40, 40), (2048, 2, 2)),
    "resnet152": Case((3, 40, 40), (2048, 2, 2)),
    "resnet101v2": Case((3, 40, 40), (2048, 2, 2)),
    "resnet152v2": Case((3, 40, 40), (2048, 2, 2)),
    "resnext101": Case((3, 40, 40), (2048, 2, 2)),
    "inception_v3": Case((3, 75, 75), (2048, 1, 1)),
    "inception_resnet_v2": Case((3, 75, 75), (1536, 1, 1)),
    "xception": Case((3, 71, 71), (2048, 3, 3)),
    "mobilenet": Case((3, 32, 32), (1024, 1, 1)),
    "mobilenet narrow": Case((3, 33, 40), (256, 1, 1), {"alpha": 0.25, "depth_multiplier": 2}),
    "mobilenet_v2": Case((3, 32, 32), (1280, 1, 1)),
    "mobilenet_v2 narrow": Case((3, 33, 40), (1280, 2, 2), {"alpha": 0.35}),
    "tf_efficientnet_lite0": Case((3, 33, 40), (1280, 2, 2)),
    **{f"tf_efficientnet_lite{number}": Case((3, 33, 40), (1280, 2, 2)) for number in range(1, 5)},
    "densenet121": Case((3, 40, 40), (1024, 1, 1)),
    "densenet169": Case((3, 40, 40), (1664, 1, 1)),
    "densenet201": Case((3, 40, 40), (1920, 1, 1)),
    "DenseNet small": Case((3, 40, 40), (128, 1, 1), build=partial(DenseNet, (2, 2, 2, 2))),
    "squeezenet": Case((3, 40, 40), (512, 2, 2)),
    "squeezenet keras": Case((3, 40, 41), (512, 1, 1), {"ceil_mode": False}),
    "nasnet_mobile": Case((3, 32, 32), (1056, 1, 1)),
    "nasnet_large": Case((3, 32, 32), (4032, 1, 1)),
    "NASNet small": Case((3, 40, 37), (192, 2, 2), build=partial(NASNet, 1, 192, 8, False)),
    "NASNet skipping": Case((3, 40, 37), (192, 2, 2), build=partial(NASNet, 1, 192, 8, True)),
}
LARGE = {"vgg19", "resnet101", "resnet152", "resnet101v2", "resnet152v2", "resnext101", "inception_v3"}
LARGE |= {"inception_resnet_v2", "xception", "mobilenet", "mobilenet_v2", "nasnet_mobile", "nasnet_large"}
LARGE |= {"densenet121", "densenet169", "densenet201", *(f"tf_efficientnet_lite{number}" for number in range(1, 5))}
SMALL = {"lenet5", "happy_model", "cifar10_net", "cifar_resnet", "cifar_resnet projection"}

every = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in LARGE else ()) for name in CASES]
)
small = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in SMALL else pytest.mark.slow) for name in CASES]
)


def build(name: str, seed: int = 0) -> tuple[Any, Tensor]:
    """The network of a case with three classes, and four images for it."""
    torch.manual_seed(seed)
    case = CASES[name]
    constructor = case.build or partial(create_model, name.split()[0])
    network = constructor(num_classes=3, in_chans=case.shape[0], **case.options)
    return network, torch.randn(4, *case.shape)


def test_every_registered_network_is_tested() -> None:
    own = {name for name in REGISTRY if name.startswith("own:")}  # of other tests
    assert set(REGISTRY) - own <= {name.split()[0] for name in CASES}


@every
def test_every_parameter_gets_a_gradient(name: str) -> None:
    network, images = build(name)
    main, auxiliary = main_and_auxiliary(network.train()(images))
    labels = torch.tensor([0, 1, 2, 0])
    sum(nn.functional.cross_entropy(logits, labels) for logits in (main, *auxiliary)).backward()
    for parameter_name, parameter in network.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
        if parameter.ndim > 1:  # batch norm cancels a bias before it
            assert parameter.grad.any(), parameter_name


@every
def test_features_head_and_reset(name: str) -> None:
    network, images = build(name)
    network.eval()
    with torch.inference_mode():
        features = network.forward_features(images)
        assert features.shape == (4, *CASES[name].features)
        assert network.num_features == features.shape[1]
        hidden = network.forward_head(features, pre_logits=True)
        assert hidden.shape == (4, network.head_hidden_size)
        logits = network(images)
        assert logits.shape == (4, 3)
        torch.testing.assert_close(network.get_classifier()(hidden), logits)

        network.reset_classifier(7)
        assert (network.num_classes, network(images).shape) == (7, (4, 7))
        torch.testing.assert_close(network.forward_head(features, pre_logits=True), hidden)

        network.reset_classifier(0)
        torch.testing.assert_close(network(images), hidden)

        network.reset_classifier(5, global_pool="max")
        assert network(images).shape == (4, 5)
        network.reset_classifier(0, global_pool="")
        torch.testing.assert_close(network(images), features)
    assert not any(module.training for module in network.modules())


@every
def test_parameters_are_in_forward_order(name: str) -> None:
    network, images = build(name)
    called: list[str] = []
    for layer_name, layer in network.named_modules():
        if next(layer.parameters(recurse=False), None) is not None:
            layer.register_forward_hook(lambda *_, layer_name=layer_name: called.append(layer_name))
    with torch.inference_mode():
        network.eval()(images)
    keys = [key for key, _ in network.named_parameters()]
    owners = list(dict.fromkeys(key.rpartition(".")[0] for key in keys))
    assert [owner for owner in owners if "_aux." not in owner] == called
    assert [key for group in blocks(network).values() for key in group] == keys


@small
def test_file_round_trip(name: str, tmp_path: Path) -> None:
    network, images = build(name)
    safe_save(network.state_dict(), tmp_path / "model.safetensors", {})
    other, _ = build(name, seed=1)
    other.load_state_dict(safe_load(tmp_path / "model.safetensors")[0])
    with torch.inference_mode():
        assert torch.equal(other.eval()(images), network.eval()(images))


@every
def test_channels_last_gives_the_same_logits(name: str) -> None:
    network, images = build(name)
    with torch.inference_mode():
        expected = network.eval()(images)
        network = network.to(memory_format=torch.channels_last)
        found = network(images.to(memory_format=torch.channels_last))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@small
def test_torch_export(name: str) -> None:
    network, images = build(name)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(network.eval(), (images,), dynamic_shapes=({0: batch},))
    with torch.inference_mode():
        found, expected = program.module()(images[:3]), network(images[:3])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize(
    ("build", "parameters"),
    [
        (lenet5, 61_706),
        (lenet5_relu, 61_706),
        (alexnet, 60_965_224),
        (vgg16, 138_357_544),
        (vgg19, 143_667_240),
        (happy_model, 37_569),
        (happy_blocks, 29_409),
        (small_convnet, 1_212_513),
        (cifar10_net, 1_250_858),
        (resnet50, 25_583_592),
        (resnet50v2, 25_568_360),
    ],
)
def test_published_parameter_counts(build: Callable[[], Network], parameters: int) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in build().parameters()) == parameters


def test_other_image_sizes_are_an_error_for_a_flattening_head() -> None:
    network = vgg16(2, input_size=64, hidden=())
    with pytest.raises(UsageError, match="flattens maps of 2x2, these images give 3x2; fix: use the "):
        network(torch.zeros(1, 3, 96, 64))
    network.reset_classifier(2, global_pool="avg")
    assert network(torch.zeros(1, 3, 96, 64)).shape == (1, 2)


def test_a_hidden_layer_belongs_to_the_classifier() -> None:
    """It trains while the backbone is frozen (flatten, 256 units, dropout)."""
    network = vgg16(hidden=(), global_pool="flatten", input_size=150)
    set_head(network, 5, hidden=256, dropout=0.5)
    shapes = [tuple(p.shape) for p in network.get_classifier().parameters()]
    assert shapes == [(256, 4 * 4 * 512), (256,), (5, 256), (5,)]
    assert network(torch.zeros(1, 3, 150, 150)).shape == (1, 5)


def test_reset_keeps_dtype_and_mode() -> None:
    network = cifar10_net().to(torch.float64).eval()
    network.reset_classifier(4)
    assert network.get_classifier().weight.dtype == torch.float64
    assert not any(module.training for module in network.modules())


def test_reset_keeps_hidden_layers_unless_the_pooling_changes() -> None:
    head = MlpHead(4, 3, "flatten", hidden=(8,), map_size=2)
    hidden = head.dense[0]
    head.reset(5)
    assert head.dense[0] is hidden
    head.reset(5, "avg")
    assert head.dense[0].weight.shape == (8, 4)
    head.reset(0, "")
    assert len(head.dense) == 0
    with pytest.raises(UsageError, match="without pooling there can be no classifier"):
        head.reset(5)
    head.reset(5, "flatten")
    assert head.dense[0].weight.shape == (8, 16)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(num_classes=2, pool="mean"), "unknown global pooling 'mean'; fix: use one of 'avg', 'max'"),
        (dict(num_classes=2, pool=""), "without pooling there can be no classifier"),
        (dict(num_classes=2, pool="flatten", map_size=0), "a 0x0 map is too small for flatten"),
        (dict(num_classes=2, pool="avg2x2", map_size=1), "a 1x1 map is too small for avg2x2"),
    ],
)
def test_impossible_heads_are_errors(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        MlpHead(4, **arguments)
