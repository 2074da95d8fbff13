"""Loading Keras's InceptionV3 weights: matching by order, heads, mismatches, damaged files."""

import copy
import os
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch import nn

from flowers_torch.errors import ModelFileError
from flowers_torch.models.inception_v3 import InceptionV3
from flowers_torch.models.keras.files import read_keras_file
from flowers_torch.models.keras.layers import keras_layers
from flowers_torch.models.keras.weights import load_keras_weights

SHARED = Path(os.environ.get("FLOWERS_TORCH_SHARED", ""))


# Keras numbers its layers in the order of their creation: conv2d, conv2d_1, ..., each with a batch norm of
# the same number. These are the module names in that order; the loader derives it from the traced network.
_A = "branch1x1 branch5x5_1 branch5x5_2 branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3 branch_pool"
_B = "branch3x3 branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3"
_C = (
    "branch1x1 branch7x7_1 branch7x7_2 branch7x7_3 "
    "branch7x7dbl_1 branch7x7dbl_2 branch7x7dbl_3 branch7x7dbl_4 branch7x7dbl_5 branch_pool"
)
_D = "branch3x3_1 branch3x3_2 branch7x7x3_1 branch7x7x3_2 branch7x7x3_3 branch7x7x3_4"
_E = (
    "branch1x1 branch3x3_1 branch3x3_2a branch3x3_2b "
    "branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3a branch3x3dbl_3b branch_pool"
)
KERAS_ORDER: tuple[str, ...] = (
    *("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3"),
    *(
        f"Mixed_{block}.{branch}"
        for block, branches in zip(
            "5b 5c 5d 6a 6b 6c 6d 6e 7a 7b 7c".split(),
            (_A, _A, _A, _B, _C, _C, _C, _C, _D, _E, _E),
            strict=True,
        )
        for branch in branches.split()
    ),
)


def keras_arrays(model: InceptionV3, start: int = 0) -> dict[str, dict[str, np.ndarray]]:
    """The network with Keras's names and layout, independently of the loader."""
    layers = {}
    for i, name in enumerate(KERAS_ORDER):
        block = model.get_submodule(name)
        suffix = f"_{start + i}" if start + i else ""
        layers[f"conv2d{suffix}"] = {"kernel:0": np.einsum("oihw->hwio", block.conv.weight.detach().numpy())}
        layers[f"batch_normalization{suffix}"] = {
            "beta:0": block.bn.bias.detach().numpy(),
            "moving_mean:0": block.bn.running_mean.numpy(),
            "moving_variance:0": block.bn.running_var.numpy(),
        }
        layers[f"activation{suffix}"] = {}
    return layers


def write_h5(path: Path, layers, root: str = "", nested: str = "") -> Path:
    with h5py.File(path, "w") as file:
        group = file.require_group(root) if root else file
        order = sorted(layers, key=lambda name: hash(name) % 97)  # a file is not in the order of the numbers
        if nested:
            inner = [name for name in order if not name.startswith("dense")]
            outer = {nested: [(n, w) for n in inner for w in layers[n]]}
            outer |= {n: [(n, w) for w in layers[n]] for n in layers if n.startswith("dense")}
        else:
            outer = {name: [(name, w) for w in layers[name]] for name in order}
        group.attrs["layer_names"] = [name.encode() for name in outer]
        for layer, weights in outer.items():
            sub = group.create_group(layer)
            sub.attrs["weight_names"] = [f"{owner}/{weight}".encode() for owner, weight in weights]
            for owner, weight in weights:
                sub[f"{owner}/{weight}"] = layers[owner][weight]
    return path


@pytest.fixture(scope="module")
def source():
    torch.manual_seed(0)
    model = InceptionV3(num_classes=0, count_include_pad=False).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
            nn.init.normal_(module.bias)
    return model


@pytest.fixture(scope="module")
def layers(source):
    return keras_arrays(source)


@pytest.fixture(scope="module")
def initialized():
    return InceptionV3(num_classes=4, count_include_pad=False)


@pytest.fixture
def model(initialized):
    """A network of four classes with other weights than `source`."""
    return copy.deepcopy(initialized)


def with_head(layers, *sizes: int):
    generator = np.random.default_rng(0)
    heads = {
        f"dense_{i}": {
            "kernel:0": generator.normal(size=pair).astype(np.float32),
            "bias:0": generator.normal(size=pair[1]).astype(np.float32),
        }
        for i, pair in enumerate(zip(sizes, sizes[1:], strict=False), 1)
    }
    return layers | heads


def backbone_equal(model: nn.Module, source: nn.Module) -> bool:
    own = model.state_dict()
    return all(torch.equal(own[name], tensor) for name, tensor in source.state_dict().items())


def test_counted_convolutions_are_numbered_by_creation(source) -> None:
    convs = [row for row in keras_layers(source) if row.kind == "Conv2D"]
    numbers = {row.module: int(row.name[len("conv2d_") :] or 0) for row in convs}
    assert [numbers[f"{name}.conv"] for name in KERAS_ORDER] == list(range(94)) and len(convs) == 94


@pytest.mark.parametrize("root", ["", "model_weights"])
@pytest.mark.parametrize("nested", ["", "inception_v3"])
def test_a_file_without_head_loads_every_tensor(tmp_path, source, layers, model, root, nested):
    path = write_h5(tmp_path / "w.h5", layers, root, nested)
    head = model.fc.weight.clone()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.zeros_(module.weight)  # Keras has no gamma here: loading must make it one
    report = load_keras_weights(model, "inception_v3", path)
    assert report.used == 94 * 4 and not report.head_loaded
    assert backbone_equal(model, source) and torch.equal(model.fc.weight, head)


def test_numbers_can_start_anywhere(tmp_path, source, model):
    path = write_h5(tmp_path / "w.h5", keras_arrays(source, start=95))
    load_keras_weights(model, "inception_v3", path)
    assert backbone_equal(model, source)


def test_dense_head_of_a_whole_model_loads_into_the_linear_layers(tmp_path, layers, model):
    layers = with_head(layers, 2048, 16, 5)
    path = write_h5(tmp_path / "w.h5", layers, "model_weights", "inception_v3")
    model.fc = nn.Sequential(nn.Linear(2048, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 5))
    report = load_keras_weights(model, "inception_v3", path)
    assert report.head_loaded and report.used == 94 * 4 + 4
    features = torch.randn(3, 2048)
    hidden = features.numpy() @ layers["dense_1"]["kernel:0"] + layers["dense_1"]["bias:0"]
    expected = np.maximum(hidden, 0) @ layers["dense_2"]["kernel:0"] + layers["dense_2"]["bias:0"]
    np.testing.assert_allclose(model.eval().fc(features).detach().numpy(), expected, rtol=1e-4, atol=1e-3)


def test_a_head_of_other_classes_is_left_out(tmp_path, source, layers, model):
    path = write_h5(tmp_path / "w.h5", with_head(layers, 2048, 5))
    report = load_keras_weights(model, "inception_v3", path)
    assert (
        report.summary() == "376 arrays of the Keras file loaded, head newly initialized (dense_1 of the file left out)"
    )
    assert report.skipped == ["dense_1"] and not report.head_loaded and backbone_equal(model, source)


@pytest.mark.parametrize(
    ("change", "texts"),
    [
        (
            lambda x: x.pop("conv2d_93"),
            ["in the network but not in the file", "conv2d_93 (Mixed_7c.branch_pool"],
        ),
        (lambda x: x.update(extra={"kernel:0": np.zeros(3)}), ["in the file but not in the network: extra"]),
        (lambda x: x["batch_normalization_7"].pop("beta:0"), ["Mixed_5b.branch5x5_2.bn.bias"]),
        (
            lambda x: x.update(conv2d={"kernel:0": np.zeros((3, 3, 3, 16))}),
            ["shapes differ", "(32, 3, 3, 3) in the network, (16, 3, 3, 3) in the file"],
        ),
        (
            lambda x: x.update(dense={"kernel:0": np.zeros((2048, 9)), "bias:0": np.zeros(9)}),
            ["fc.weight is (4, 2048) in the network, (9, 2048) in the file"],
        ),
        (lambda x: x["conv2d_2"].update({"bias:0": np.zeros(64)}), ["Conv2d_2b_3x3.conv.bias is nothing"]),
    ],
)
def test_the_error_for_a_mismatch_names_both_sides(tmp_path, layers, model, change, texts):
    layers = {name: dict(weights) for name, weights in layers.items()}
    change(layers)
    path = write_h5(tmp_path / "w.h5", layers)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ModelFileError) as caught:
        load_keras_weights(model, "inception_v3", path, with_head=True)
    assert "\n" not in str(caught.value) and all(text in str(caught.value) for text in texts), caught.value
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_other_and_damaged_files_are_errors(tmp_path, layers):
    (tmp_path / "text.h5").write_text("hello")
    with h5py.File(tmp_path / "data.h5", "w") as file:
        file["x"] = np.zeros(3)
    whole = write_h5(tmp_path / "whole.h5", {"conv2d": {"kernel:0": np.ones((64, 64, 8, 8), np.float32)}})
    (tmp_path / "cut.h5").write_bytes(whole.read_bytes()[:5000])
    with h5py.File(tmp_path / "outward.h5", "w") as file:
        file.attrs["layer_names"] = ["conv2d"]
        file.create_group("conv2d").attrs["weight_names"] = ["kernel:0"]
        file["conv2d/kernel:0"] = h5py.ExternalLink("whole.h5", "conv2d/conv2d/kernel:0")
    with h5py.File(tmp_path / "bomb.h5", "w") as file:
        file.attrs["layer_names"] = ["conv2d"]
        file.create_group("conv2d").attrs["weight_names"] = ["kernel:0"]
        file.create_dataset("conv2d/kernel:0", (1 << 20, 1 << 20), "f4", chunks=(1024, 1024))
    names = ("text", "data", "cut", "outward", "bomb", "absent")
    for name in names:
        with pytest.raises(ModelFileError, match=name):
            read_keras_file(tmp_path / f"{name}.h5")
    with pytest.raises(ModelFileError, match="it is a folder"):
        read_keras_file(tmp_path)


def test_divided_layer_names_are_joined(tmp_path):
    path = write_h5(tmp_path / "w.h5", {"a": {"kernel:0": np.ones((2, 2))}, "b": {"kernel:0": np.ones((2, 2))}})
    with h5py.File(path, "r+") as file:
        del file.attrs["layer_names"]
        file.attrs["layer_names0"], file.attrs["layer_names1"] = [b"a"], [b"b"]
    assert list(read_keras_file(path).layers) == ["a", "b"]


@pytest.mark.slow
def test_published_weights_give_the_features_of_keras():
    path, golden = SHARED / "weights/inception_v3_notop.h5", SHARED / "golden/inception_v3.npz"
    if not path.exists():
        pytest.skip("needs the published weights and Keras's features under FLOWERS_TORCH_SHARED")
    expected = np.load(golden)
    model = InceptionV3(num_classes=0, count_include_pad=False).eval()
    assert load_keras_weights(model, "inception_v3", path).used == 94 * 4
    images = torch.from_numpy(expected["images_uint8_nhwc"]).permute(0, 3, 1, 2) / 127.5 - 1
    mixed5 = []
    model.Mixed_6c.register_forward_hook(lambda *call: mixed5.append(call[2].mean((2, 3))))
    with torch.no_grad():
        mixed10 = model.forward_features(images)
    for found, key in (
        (mixed5[0], "mixed5_gap"),
        (mixed10.mean((2, 3)), "mixed10_gap"),
        (mixed10[0].permute(1, 2, 0), "mixed10_first_nhwc"),
    ):
        wanted = torch.from_numpy(expected[key])
        assert (found - wanted).abs().max() / wanted.abs().max() < 1e-3, key
