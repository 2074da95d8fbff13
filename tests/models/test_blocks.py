"""Blocks against recorded TensorFlow outputs; shapes and errors."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from flowers_torch.errors import UsageError
from flowers_torch.models.blocks import (
    BasicBlock,
    ConvolutionalBlock,
    IdentityBlock,
    PreActivationBlock,
    ZeroPadShortcut,
    glorot_init_,
)

# Kernels, input and outputs of the course notebook's two block tests, computed by TensorFlow with the
# notebook's random seeds: f = 2, filters 2, 4, 6, images of 4x4x6.
GOLDEN = Path(__file__).parents[1] / "golden" / "resnet_blocks.npz"
PRINTED = {  # out[1, 1, 0, :] as the notebook prints it
    "identity": [0.94822985, 0.0, 1.16101444, 2.747859, 0.0, 1.36677003],
    "convolutional": [0.09018463, 1.23489773, 0.46822017, 0.0367176, 0.0, 0.65516603],
}


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN) as file:
        return {name: file[name] for name in file.files}


def golden_block(kind: str, golden: dict[str, np.ndarray]) -> nn.Module:
    block = {"identity": IdentityBlock, "convolutional": ConvolutionalBlock}[kind](6, 2, (2, 4, 6))
    places = {"2a": "main.conv1", "2b": "main.conv2", "2c": "main.conv3", "1": "shortcut.conv"}
    with torch.no_grad():
        for branch, place in places.items():
            if (kernel := golden.get(f"kernel_{kind}_{branch}_hwio")) is not None:
                conv = block.get_submodule(place)
                conv.weight.copy_(torch.from_numpy(kernel).permute(3, 2, 0, 1))
                nn.init.zeros_(conv.bias)
    return block


def nhwc(x: Tensor) -> np.ndarray:
    return x.permute(0, 2, 3, 1).detach().numpy()


@pytest.mark.parametrize("kind", ["identity", "convolutional"])
def test_blocks_give_the_recorded_outputs(kind: str, golden: dict[str, np.ndarray]) -> None:
    images = torch.from_numpy(golden["input_nhwc"]).float().permute(0, 3, 1, 2)
    block = golden_block(kind, golden)

    inference = nhwc(block.eval()(images))
    np.testing.assert_allclose(inference[1, 1, 0], PRINTED[kind], rtol=0, atol=2e-6)
    np.testing.assert_allclose(inference, golden[f"{kind}_inference_nhwc"], rtol=0, atol=2e-6)

    batch_statistics = nhwc(block.train()(images))
    np.testing.assert_allclose(batch_statistics, golden[f"{kind}_batch_statistics_nhwc"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("epsilon", [1.001e-5, 1e-5])
def test_recorded_outputs_depend_on_epsilon(epsilon: float, golden: dict[str, np.ndarray]) -> None:
    block = golden_block("identity", golden).eval()
    images = torch.from_numpy(golden["input_nhwc"]).float().permute(0, 3, 1, 2)
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = epsilon
    assert np.abs(nhwc(block(images)) - golden["identity_inference_nhwc"]).max() > 1e-4


@pytest.mark.parametrize("kernel_size", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("size", [5, 8])
def test_identity_block_keeps_the_map_size_for_any_kernel(kernel_size: int, size: int) -> None:
    x = torch.randn(2, 6, size, size)
    assert IdentityBlock(6, kernel_size, (2, 4, 6))(x).shape == x.shape


@pytest.mark.parametrize("stride_on", ["first", "middle"])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("size", [7, 8])
def test_convolutional_block_divides_the_size_by_its_stride(stride_on: str, stride: int, size: int) -> None:
    block = ConvolutionalBlock(3, 3, (4, 8, 10), stride, stride_on=stride_on, bias=False, groups=2)
    side = -(-size // stride)
    assert block(torch.randn(2, 3, size, size)).shape == (2, 10, side, side)


def test_stride_is_on_the_selected_convolution() -> None:
    first = ConvolutionalBlock(4, 3, (4, 4, 8)).main
    middle = ConvolutionalBlock(4, 3, (4, 4, 8), stride_on="middle").main
    assert (first.conv1.stride, first.conv2.stride) == ((2, 2), (1, 1))
    assert (middle.conv1.stride, middle.conv2.stride) == ((1, 1), (2, 2))


def test_identity_block_with_another_width_is_an_error() -> None:
    with pytest.raises(UsageError, match="5 input channels to 6 output channels; fix: .*ConvolutionalBlock"):
        IdentityBlock(5, 3, (2, 4, 6))


def test_even_kernel_with_stride_is_an_error() -> None:
    with pytest.raises(UsageError, match="2x2 convolution cannot be centered"):
        ConvolutionalBlock(6, 2, (2, 4, 6), stride_on="middle")


def test_preactivation_block_shortcuts() -> None:
    x = torch.randn(2, 8, 7, 7)
    assert PreActivationBlock(8, 3, project=True)(x).shape == (2, 12, 7, 7)

    block = PreActivationBlock(8, 2, stride=2).eval()
    nn.init.zeros_(block.conv3.weight)
    nn.init.zeros_(block.conv3.bias)
    torch.testing.assert_close(block(x), x[:, :, ::2, ::2])  # without ReLU


def test_basic_block_without_shortcut_is_its_main_path() -> None:
    torch.manual_seed(0)
    x = torch.rand(2, 4, 6, 6)
    residual, plain = (BasicBlock(4, 4, shortcut=kind).eval() for kind in ("zero_pad", "none"))
    plain.load_state_dict(residual.state_dict())  # the same layers
    nn.init.zeros_(residual.conv2.weight)
    nn.init.zeros_(plain.conv2.weight)
    torch.testing.assert_close(residual(x), x)
    assert plain(x).count_nonzero() == 0


def test_zero_padding_shortcut_has_no_parameters_and_pads_or_drops_channels() -> None:
    x = torch.randn(1, 2, 4, 4)
    wider = ZeroPadShortcut(2, 5, 2)(x)
    assert wider.shape == (1, 5, 2, 2)
    torch.testing.assert_close(wider[:, :2], x[:, :, ::2, ::2])
    assert wider[:, 2:].count_nonzero() == 0
    torch.testing.assert_close(ZeroPadShortcut(2, 1, 1)(x), x[:, :1])
    assert not list(ZeroPadShortcut(2, 5, 2).parameters())
    assert BasicBlock(2, 5, 2, "projection")(x).shape == wider.shape


def test_glorot_limits_of_keras() -> None:
    conv = nn.Conv2d(6, 10, 3)
    glorot_init_(conv)
    limit = (6 / (9 * 6 + 9 * 10)) ** 0.5
    assert 0.9 * limit < conv.weight.abs().max() <= limit
    assert conv.bias.count_nonzero() == 0
