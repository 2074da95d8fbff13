"""EfficientNet-Lite and the layers of TensorFlow against timm's."""

import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from flowers_torch.models.factory import create_model
from flowers_torch.models.feature_sets import set_features
from flowers_torch.models.freeze import blocks
from flowers_torch.models.heads import logits_and_features, set_head
from flowers_torch.models.tf_layers import MaxPool2dSame


def pair(number: int) -> tuple[nn.Module, nn.Module]:
    """Our network and timm's with the same random weights and statistics."""
    torch.manual_seed(number)
    name = f"tf_efficientnet_lite{number}"
    theirs = timm.create_model(name, num_classes=5).eval()
    for norm in theirs.modules():
        if isinstance(norm, nn.BatchNorm2d):  # so that a swapped batch norm changes the logits
            norm.running_mean.normal_(0, 0.2)
            norm.running_var.uniform_(0.5, 2)
            nn.init.uniform_(norm.weight, 0.5, 1.5)
    ours = create_model(name, 5).eval()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


@pytest.mark.parametrize("number", range(5))
def test_timms_weights_give_timms_logits(number: int) -> None:
    ours, theirs = pair(number)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert list(blocks(ours)) == list(blocks(theirs))  # which recipes name
    images = torch.randn(2, 3, 97, 130)  # odd and even sides: the padding differs
    with torch.no_grad():
        expected, found = theirs(images), ours(images)
    assert expected.std() > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("features", ["", "wide"])
def test_training_gives_timms_gradients(features: str) -> None:
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    models = pair(0)
    for model in models:
        if features:
            set_features(model, features)
            torch.manual_seed(2)
            set_head(model, 5)
        model.train()
        nn.functional.cross_entropy(model(images), torch.arange(4)).backward()
    ours, theirs = (dict(model.named_parameters()) for model in models)
    for name, parameter in theirs.items():
        # A gradient is the sum of many values that nearly cancel.
        torch.testing.assert_close(ours[name].grad, parameter.grad, rtol=1e-3, atol=1e-5)
    with torch.no_grad():
        found, expected = (logits_and_features(model.eval(), images) for model in models)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_dropout_and_pooling_are_options() -> None:
    images = torch.randn(2, 3, 40, 40)
    model = create_model("tf_efficientnet_lite0", 5, drop_rate=1.0)
    bias = model.get_submodule("classifier").bias
    torch.testing.assert_close(model.train()(images), bias.expand(2, 5))
    assert not torch.allclose(model.eval()(images), bias.expand(2, 5))
    maps = create_model("tf_efficientnet_lite0", include_top=False).eval()
    pooled = create_model("tf_efficientnet_lite0", include_top=False, pooling="max").eval()
    pooled.load_state_dict(maps.state_dict())
    assert maps(images).shape == (2, 1280, 2, 2)
    torch.testing.assert_close(pooled(images), maps(images).amax((2, 3)))


def test_norms_of_several_processes_keep_the_activations() -> None:
    """`convert_sync_batchnorm` replaces every batch norm, and with it what a class of one's own would add."""
    model, _ = pair(0)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in converted.modules())
    assert sum(isinstance(module, nn.ReLU6) for module in converted.modules()) == 33


@pytest.mark.parametrize(("height", "width"), [(12, 13), (7, 7), (2, 3)])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (2, 2), (3, 1), (5, 3)])
def test_max_pooling_is_that_of_timm(kernel: int, stride: int, height: int, width: int) -> None:
    maps = torch.randn(2, 3, height, width) - 5  # below zero, so that a padding of zeros would show
    theirs = timm.layers.create_pool2d("max", kernel, stride, padding="same")
    torch.testing.assert_close(MaxPool2dSame(kernel, stride)(maps), theirs(maps))


SCRIPT = """
import sys
from flowers_torch.cli import main
photos, out = sys.argv[1:]
common = ["--data", photos, "--weights", "none", "--size", "75", "--out", out, "--threads", "1"]
assert main(["train", "--arch", ARCH, *common, "--head-only"]) == 0
assert main(["predict", out, photos + "/red/1.png"]) == 0
loaded = [name for name in ("timm", "torchvision", "torch._dynamo", "sympy") if name in sys.modules]
assert not loaded, loaded
"""


@pytest.mark.parametrize("arch", ["tf_efficientnet_lite0", "inception_v3"])
def test_a_run_needs_neither_timm_nor_torchvision(arch: str, photo_folder: Path, tmp_path: Path) -> None:
    """Their import takes longer than that of torch, in every command."""
    code = f"ARCH = {arch!r}{SCRIPT}"
    subprocess.run([sys.executable, "-c", code, str(photo_folder), str(tmp_path / "run")], check=True)
