"""Files that Keras wrote years ago for others, against the layers' arithmetic written out by hand."""

import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor

from flowers_torch.errors import ModelFileError
from flowers_torch.models.checkpoint import ModelInfo, build
from flowers_torch.models.factory import create_model
from flowers_torch.models.weights import load_weights, plan_weights

FOLDER = Path(os.environ.get("FLOWERS_TORCH_SHARED", "")) / "weights/keras"
TEACHABLE = FOLDER / "teachable_machine_mobilenet_v2_035_224.h5"
TENSORFLOW = FOLDER / "squeezenet_weights_tf_dim_ordering_tf_kernels_notop.h5"
THEANO = FOLDER / "squeezenet_weights_th_dim_ordering_th_kernels_notop.h5"
WITHOUT_KERNEL = FOLDER / "mobilenet_1_0_224_without_conv_pw_13.h5"
needs_files = pytest.mark.skipif(not TEACHABLE.is_file(), reason="needs weights/keras under FLOWERS_TORCH_SHARED")


def arrays_of(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a file by the last two parts of their paths."""
    found = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            found["/".join(name.split("/")[-2:])] = np.asarray(item)

    with h5py.File(path) as file:
        file.visititems(visit)
    return found


class HandMade:
    """MobileNetV2 as Teachable Machine uses it, from the arrays of its file."""

    def __init__(self, path: Path) -> None:
        self.arrays = {name.removesuffix(":0"): torch.from_numpy(array) for name, array in arrays_of(path).items()}

    def convolve(self, x: Tensor, name: str, stride: int = 1) -> Tensor:
        if depthwise := f"{name}/depthwise_kernel" in self.arrays:
            kernel = self.arrays[f"{name}/depthwise_kernel"].permute(2, 3, 0, 1)
        else:
            kernel = self.arrays[f"{name}/kernel"].permute(3, 2, 0, 1)
        if kernel.shape[-1] == 3:
            x = F.pad(x, (0, 1, 0, 1) if stride == 2 else (1, 1, 1, 1))
        return F.conv2d(x, kernel, stride=stride, groups=x.shape[1] if depthwise else 1)

    def norm(self, x: Tensor, name: str) -> Tensor:
        mean, variance, gamma, beta = (
            self.arrays[f"{name}/{kind}"][:, None, None] for kind in ("moving_mean", "moving_variance", "gamma", "beta")
        )
        return (x - mean) / (variance + 1e-3).sqrt() * gamma + beta

    def __call__(self, x: Tensor) -> Tensor:
        x = F.relu6(self.norm(self.convolve(x, "Conv1", 2), "bn_Conv1"))
        for number in range(17):
            before, block = x, f"block_{number}" if number else "expanded_conv"
            if number:
                x = F.relu6(self.norm(self.convolve(x, f"{block}_expand"), f"{block}_expand_BN"))
            stride = 2 if number in (1, 3, 6, 13) else 1
            x = F.relu6(self.norm(self.convolve(x, f"{block}_depthwise", stride), f"{block}_depthwise_BN"))
            x = self.norm(self.convolve(x, f"{block}_project"), f"{block}_project_BN")
            x = x + before if x.shape == before.shape else x
        x = F.relu6(self.norm(self.convolve(x, "Conv_1"), "Conv_1_bn")).mean((2, 3))
        first, second = (name for name in self.arrays if name.startswith("dense_Dense") and name.endswith("/kernel"))
        bias = self.arrays[first.replace("kernel", "bias")]
        return (x @ self.arrays[first] + bias).relu() @ self.arrays[second]


@needs_files
def test_teachable_machine(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "flowers_torch"):
        plan = plan_weights("mobilenet_v2", str(TEACHABLE))
    assert plan.options == {"alpha": 0.35} and "sizes of mobilenet_v2 with alpha = 0.35" in caplog.text
    info = ModelInfo("mobilenet_v2", ("cat", "dog"), plan.preprocessing, head_hidden=100, model_options=plan.options)
    model = build(info).eval()
    assert load_weights(model, "mobilenet_v2", plan).endswith("head loaded")
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    with torch.inference_mode():
        expected, found = HandMade(TEACHABLE)(images), model(images)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    text = load_weights(build(info), "mobilenet_v2", plan, ("iris", "rose"))
    assert "head newly initialized" in text


def theano_convolution(x: np.ndarray, kernel: np.ndarray, stride: int = 1) -> np.ndarray:
    """The convolution of mathematics, as Theano computes it: the kernel runs backward."""
    windows = sliding_window_view(x, kernel.shape[2:], (1, 2))[:, ::stride, ::stride]
    return np.einsum("cyxij,ocij->oyx", windows, kernel[:, :, ::-1, ::-1])


@needs_files
def test_squeezenet_in_both_orders() -> None:
    models = [create_model("squeezenet", weights=str(path), include_top=False).eval() for path in (TENSORFLOW, THEANO)]
    states = [model.state_dict() for model in models]
    assert all(torch.equal(states[0][name], tensor) for name, tensor in states[1].items() if "features.0." not in name)

    image = np.random.default_rng(0).normal(size=(3, 41, 41)).astype(np.float32)
    with h5py.File(THEANO) as file:
        conv1, squeeze = (
            [np.asarray(file[n][w]) for w in file[n].attrs["weight_names"]] for n in ("conv1", "fire2/squeeze1x1")
        )
    assert conv1[0].shape == (64, 3, 3, 3) and squeeze[0].shape == (16, 64, 1, 1)
    # keras-squeezenet takes BGR images.
    map_ = np.maximum(theano_convolution(image[::-1], conv1[0], 2) + conv1[1][:, None, None], 0)
    map_ = sliding_window_view(map_, (3, 3), (1, 2))[:, ::2, ::2].max((3, 4))
    map_ = np.maximum(theano_convolution(map_, squeeze[0]) + squeeze[1][:, None, None], 0)
    features = models[1].get_submodule("features")
    found = torch.from_numpy(image)[None]
    with torch.inference_mode():
        for layer in (*features[:3], features[3].squeeze, features[3].squeeze_activation):  # type: ignore[index]
            found = layer(found)
    assert np.abs(found[0].numpy() - map_).max() <= 1e-5 * np.abs(map_).max()
    assert "turned by 180 degrees" in load_weights(
        create_model("squeezenet", 3, ceil_mode=False), "squeezenet", plan_weights("squeezenet", str(THEANO))
    )


@needs_files
def test_a_missing_kernel_is_named() -> None:
    plan = plan_weights("mobilenet", str(WITHOUT_KERNEL))
    with pytest.raises(ModelFileError, match=r"conv_pw_13|block13\.pw"):
        load_weights(create_model("mobilenet", 2), "mobilenet", plan)


def write_happy(path: Path, kernel: np.ndarray, dense: np.ndarray, backend: str = "") -> None:
    """HappyModel for images of 8 pixels, as Keras 1 and 2 write it."""
    generator = np.random.default_rng(1)
    layers = {
        "conv0": [kernel, generator.normal(size=32)],
        "bn0": [generator.uniform(0.5, 1.5, 32) for _ in range(4)],
        "fc": [dense, generator.normal(size=2)],
    }
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [name.encode() for name in layers]
        if backend:
            file.attrs["backend"] = backend.encode()
        for name, arrays in layers.items():
            group = file.create_group(name)
            group.attrs["weight_names"] = [f"{name}_{number}".encode() for number in range(len(arrays))]
            for number, array in enumerate(arrays):
                group[f"{name}_{number}"] = array.astype(np.float32)


def test_theanos_order_of_every_age(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    kernel, dense = generator.normal(size=(7, 7, 3, 32)), generator.normal(size=(4 * 4 * 32, 2))
    channels_first = dense.reshape(4, 4, 32, 2).transpose(2, 0, 1, 3).reshape(-1, 2)
    swapped = kernel.transpose(3, 2, 0, 1)
    files = {
        "a_tf.h5": (kernel, dense, ""),
        "happy_th_dim_ordering_th_kernels.h5": (swapped[:, :, ::-1, ::-1], channels_first, ""),
        "happy_th_dim_ordering_tf_kernels.h5": (swapped, channels_first, ""),
        "happy_tf_dim_ordering_th_kernels.h5": (kernel[::-1, ::-1], dense, ""),
        "keras1.h5": (swapped[:, :, ::-1, ::-1], channels_first, ""),
        "keras2.h5": (kernel[::-1, ::-1], dense, "theano"),
        "keras2_tf.h5": (kernel, dense, "tensorflow"),
    }
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    found = []
    for name, content in files.items():
        write_happy(tmp_path / name, *content)
        with torch.inference_mode():
            found.append(create_model("happy_model", 2, size=8, weights=str(tmp_path / name)).eval()(images))
    assert found[0].std() > 1e-3
    for name, logits in zip(files, found, strict=True):
        assert torch.allclose(logits, found[0], rtol=1e-6, atol=1e-6), name
