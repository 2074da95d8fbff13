"""timm's and torchvision's ResNets and the handwritten ones give equal logits with equal weights."""

import pytest
import timm
import torch
import torchvision
from torch import nn

from flowers_torch.errors import ModelFileError
from flowers_torch.models import resnet
from flowers_torch.models.torch_weights import RESNET_NAMES, load_renamed

BOTH = {
    "resnet50": "resnet50",
    "resnet101": "resnet101",
    "resnet152": "resnet152",
    "resnext50": "resnext50_32x4d",
    "resnext101": "resnext101_32x4d",  # torchvision has only the 32x8d one
}


def randomise_batch_norm(network: nn.Module) -> None:
    """Statistics that a forgotten or swapped tensor could not reproduce, small enough to stay finite."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in network.state_dict().items():
        if "running_mean" in name or ("bn" in name and name.endswith("bias")):
            tensor.copy_(0.1 * torch.randn(tensor.shape, generator=generator))
        elif "running_var" in name or ("bn" in name and name.endswith("weight")):
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))


def assert_same_logits(theirs: nn.Module, name: str) -> None:
    torch.manual_seed(0)
    randomise_batch_norm(theirs)
    with torch.device("meta"):
        ours = getattr(resnet, name)(1000, lineage="torch")
    ours.to_empty(device="cpu")
    load_renamed(ours, theirs.state_dict(), RESNET_NAMES)
    images = torch.randn(2, 3, 65, 96)
    with torch.inference_mode():
        expected, found = theirs.eval()(images), ours.eval()(images)
    assert expected.std() > 1e-3
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "resnet50" else pytest.mark.slow) for name in BOTH]
)
def test_timm_weights(name: str) -> None:
    assert_same_logits(timm.create_model(BOTH[name]), name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in BOTH if name != "resnext101"])
def test_torchvision_weights(name: str) -> None:
    assert_same_logits(torchvision.models.get_model(BOTH[name]), name)


def small() -> resnet.ResNet:
    return resnet.ResNet((1, 1, 1, 1), 3, bias=False, stride_on="middle", epsilon=1e-5)


def test_misfits_are_listed_and_nothing_is_loaded() -> None:
    network = small()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state = {name: tensor + 1 for name, tensor in before.items()}
    state["head.fc.weight"] = torch.zeros(4, 2048)
    state["head.extra"] = state.pop("head.fc.bias")
    with pytest.raises(ModelFileError) as caught:
        load_renamed(network, state, RESNET_NAMES)
    text = str(caught.value)
    assert "no place for head.extra 3" in text
    assert "nothing for head.fc.bias 3" in text
    assert "head.fc.weight is 4x2048, expected 3x2048" in text
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_a_long_list_of_misfits_is_cut_and_two_tensors_for_one_place_are_an_error() -> None:
    network = small()
    with pytest.raises(ModelFileError, match="and 96 more"):
        load_renamed(network, {}, RESNET_NAMES)
    state = network.state_dict()
    state["fc.bias"] = torch.zeros(3)
    with pytest.raises(ModelFileError, match="1 names coincide"):
        load_renamed(network, state, RESNET_NAMES)


def test_another_lineage_is_refused() -> None:
    with torch.device("meta"):
        ours, theirs = resnet.resnet50(), timm.create_model("resnet50")
    with pytest.raises(ModelFileError, match="nothing for conv1.bias 64"):
        load_renamed(ours, theirs.state_dict(), RESNET_NAMES)
