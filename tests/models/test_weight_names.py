"""Networks of timm and torchvision give the same logits as the handwritten ones with the same weights."""

from collections.abc import Callable
from functools import partial

import pytest
import timm
import torch
import torchvision
from torch import nn

from flowers_torch.errors import ModelFileError
from flowers_torch.models import classic, densenet, resnet
from flowers_torch.models.checkpoint import load_matching
from flowers_torch.models.network import Network
from flowers_torch.models.pretrained import from_timm
from flowers_torch.models.xception import EPSILON, xception

RESNETS = {
    "resnet50": "resnet50",
    "resnet101": "resnet101",
    "resnet152": "resnet152",
    "resnext50": "resnext50_32x4d",
    "resnext101": "resnext101_32x4d",  # torchvision has only the 32x8d one
}
VGGS = {"vgg16": (classic.vgg16, "vgg16"), "vgg19": (classic.vgg19, "vgg19")}


def randomize_batch_norm(network: nn.Module) -> None:
    """Different values in each tensor, so that a missing or swapped one changes the logits."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in network.state_dict().items():
        if "running_mean" in name or ("bn" in name and name.endswith("bias")):
            tensor.copy_(0.1 * torch.randn(tensor.shape, generator=generator))
        elif "running_var" in name or ("bn" in name and name.endswith("weight")):
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))


def assert_same_logits(theirs: nn.Module, build: Callable[[], Network], arch: str, size: int) -> None:
    torch.manual_seed(0)
    randomize_batch_norm(theirs)
    with torch.device("meta"):
        ours = build()
    ours.to_empty(device="cpu")
    load_matching(ours, from_timm(theirs.state_dict(), arch), "theirs")
    images = torch.randn(2, 3, size, size)
    with torch.inference_mode():
        expected, found = theirs.eval()(images), ours.eval()(images)
    assert expected.std() > 1e-3
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "resnet50" else pytest.mark.slow) for name in RESNETS]
)
def test_resnet_weights_of_timm(name: str) -> None:
    theirs = timm.create_model(RESNETS[name])
    assert_same_logits(theirs, lambda: getattr(resnet, name)(lineage="torch"), name, 65)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in RESNETS if name != "resnext101"])
def test_resnet_weights_of_torchvision(name: str) -> None:
    theirs = torchvision.models.get_model(RESNETS[name])
    assert_same_logits(theirs, lambda: getattr(resnet, name)(lineage="torch"), name, 65)


@pytest.mark.slow
@pytest.mark.parametrize("name", VGGS)
@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_vgg_weights(name: str, library: str) -> None:
    create = {"timm": timm.create_model, "torchvision": torchvision.models.get_model}[library]
    assert_same_logits(create(name), *VGGS[name], 224)


@pytest.mark.slow
@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_densenet_weights(library: str) -> None:
    theirs = {"timm": timm.create_model, "torchvision": torchvision.models.get_model}[library]("densenet121")
    assert_same_logits(theirs, partial(densenet.densenet121, epsilon=1e-5), "densenet121", 64)


@pytest.mark.slow
def test_xception_weights_of_timm() -> None:
    """At 71 pixels the input of every strided layer has an odd size, for which timm pads like Keras."""
    theirs = timm.create_model("legacy_xception")
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = EPSILON
    assert_same_logits(theirs, xception, "xception", 71)


TABLES: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module], str]] = {
    **{f"{name} of timm": (partial(timm.create_model, name), *rest) for name, rest in VGGS.items()},
    **{f"{name} of torchvision": (getattr(torchvision.models, name), *rest) for name, rest in VGGS.items()},
    **{
        f"densenet{depth}": (
            getattr(torchvision.models, f"densenet{depth}"),
            getattr(densenet, f"densenet{depth}"),
            f"densenet{depth}",
        )
        for depth in (121, 169, 201)
    },
    "xception": (partial(timm.create_model, "legacy_xception"), xception, "xception"),
}


@pytest.mark.parametrize("name", TABLES)
def test_every_tensor_has_a_counterpart(name: str) -> None:
    theirs_of, ours_of, arch = TABLES[name]
    with torch.device("meta"):
        theirs, ours = theirs_of().state_dict(), ours_of().state_dict()
    found = {key: tensor.shape for key, tensor in from_timm(theirs, arch).items()}
    assert found == {key: tensor.shape for key, tensor in ours.items()}


def test_weights_of_another_lineage_are_an_error_and_change_nothing() -> None:
    ours, theirs = resnet.resnet50(), timm.create_model("resnet50")
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    with pytest.raises(ModelFileError, match="timm's resnet50 does not fit ResNet: 53 missing .conv1.bias"):
        load_matching(ours, from_timm(theirs.state_dict(), "resnet50"), "timm's resnet50")
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_two_tensors_of_one_name_are_an_error() -> None:
    with pytest.raises(ModelFileError, match="two of the weights would become head.fc.bias"):
        from_timm({"fc.bias": torch.zeros(3), "head.fc.bias": torch.zeros(3)}, "resnet50")
