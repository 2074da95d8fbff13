"""Every kind of layer and of file, on small networks, against Keras's arithmetic in numpy."""

import io
import zipfile
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch import nn

from flowers_torch.errors import ModelFileError, UsageError
from flowers_torch.models.classic import VGG
from flowers_torch.models.densenet import DenseNet
from flowers_torch.models.keras.files import is_keras_file, read_keras_file
from flowers_torch.models.keras.layers import keras_layers, renumbered
from flowers_torch.models.keras.names import current_names
from flowers_torch.models.keras.weights import MEAN_STD, input_mode, load_keras_weights
from flowers_torch.models.mobilenet import MobileNet
from flowers_torch.models.registry import REGISTRY
from flowers_torch.models.resnet import ResNet
from flowers_torch.models.small import Cifar10Net, HappyModel, SmallConvNet
from flowers_torch.models.weights import load_weights, plan_weights
from flowers_torch.models.xception import EntryBlock, Xception

GENERATOR = np.random.default_rng(0)
Layers = dict[str, list[np.ndarray]]  # Keras name -> arrays in Keras's layout and order


def normal(*shape: int) -> np.ndarray:
    return GENERATOR.normal(size=shape).astype(np.float32)


def random_layers(model: nn.Module) -> Layers:
    """Random weights for the network in Keras's shapes."""
    layers: Layers = {}
    for row in keras_layers(model):
        if not row.parameters:
            continue
        module = model.get_submodule(row.module)
        if isinstance(module, nn.BatchNorm2d):
            n = module.num_features
            layers[row.name] = [normal(n), normal(n), normal(n), GENERATOR.uniform(0.5, 1.5, n)]
        elif row.kind == "SeparableConv2D":
            height, width = module.depthwise.kernel_size
            inside, outside = module.depthwise.in_channels, module.pointwise.out_channels
            layers[row.name] = [normal(height, width, inside, 1), normal(1, 1, inside, outside)]
        elif row.kind == "DepthwiseConv2D":
            multiplier = module.out_channels // module.in_channels
            layers[row.name] = [normal(*module.kernel_size, module.in_channels, multiplier)]
        elif module.groups > 1:  # in ResNeXt of 2019 depthwise, then a sum
            per_group = module.out_channels // module.groups
            layers[row.name] = [normal(*module.kernel_size, module.in_channels, per_group)]
        else:
            layers[row.name] = [normal(*module.kernel_size, module.in_channels, module.out_channels)]
            layers[row.name] += [normal(module.out_channels)] if module.bias is not None else []
    return layers


def write_legacy(path: Path, layers: Layers) -> Path:
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [name.encode() for name in layers]
        for name, arrays in layers.items():
            group = file.create_group(name)
            weights = [f"{name}/weight_{i}" for i in range(len(arrays))]  # only the position matters
            group.attrs["weight_names"] = [weight.encode() for weight in weights]
            for weight, array in zip(weights, arrays, strict=True):
                group[weight] = array
    return path


def write_keras3(file: h5py.File, layers: Layers, named: bool, groups: list[str] | None = None) -> None:
    for i, (name, arrays) in enumerate(layers.items()):
        variables = file.create_group(f"layers/{groups[i] if groups else f'kind_{i}'}/vars")
        if named:
            variables.attrs["name"] = name
        for number, array in enumerate(arrays):
            variables[str(number)] = array
    file.create_group("optimizer/vars")["0"] = np.zeros(1)


def small_mobilenet() -> MobileNet:
    torch.manual_seed(0)
    return MobileNet(num_classes=6, alpha=0.25, depth_multiplier=2).eval()


def with_predictions(layers: Layers, channels: int, classes: int) -> Layers:
    return layers | {"conv_preds": [normal(1, 1, channels, classes), normal(classes)]}


def test_depthwise_kernels_and_a_convolutional_classifier(tmp_path: Path) -> None:
    model = small_mobilenet()
    layers = with_predictions(random_layers(model), 256, 6)
    report = load_keras_weights(model, "mobilenet", write_legacy(tmp_path / "w.h5", layers))
    assert report.head_loaded and report.used == sum(map(len, layers.values()))
    block = model.blocks.block1
    kernel = layers["conv_dw_1"][0]  # 3, 3, channels, 2
    x = normal(1, kernel.shape[2], 3, 3)
    expected = [(x[0, c] * kernel[:, :, c, m]).sum() for c in range(kernel.shape[2]) for m in range(kernel.shape[3])]
    found = block.dw(torch.from_numpy(x))[0, :, 1, 1].detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    gamma, beta, mean, variance = layers["conv_dw_1_bn"]
    y = normal(1, len(gamma), 2, 2)
    expected_norm = (y[0, :, 0, 0] - mean) / np.sqrt(variance + 1e-3) * gamma + beta
    found = block.dw_bn(torch.from_numpy(y))[0, :, 0, 0].detach().numpy()
    np.testing.assert_allclose(found, expected_norm, rtol=1e-4, atol=1e-5)
    kernel, bias = layers["conv_preds"]
    z = normal(1, 256)
    found = model.head.fc(torch.from_numpy(z)).detach().numpy()
    np.testing.assert_allclose(found, z @ kernel[0, 0] + bias, rtol=1e-4, atol=1e-4)


def test_separable_convolutions(tmp_path: Path) -> None:
    model = Xception(num_classes=0).eval()
    layers = random_layers(model)
    load_keras_weights(model, "xception", write_legacy(tmp_path / "w.h5", layers))
    assert isinstance(model.block2, EntryBlock)
    depthwise, pointwise = layers["block2_sepconv1"]
    x = normal(1, 64, 3, 3)
    middle = np.einsum("chw,hwc->c", x[0], depthwise[..., 0])
    found = model.block2.sepconv1(torch.from_numpy(x))[0, :, 1, 1].detach().numpy()
    np.testing.assert_allclose(found, middle @ pointwise[0, 0], rtol=1e-3, atol=1e-3)
    # The four 1x1 convolutions of the shortcuts have default names and match by order.
    kernel = layers["conv2d_3"][0]
    assert torch.equal(model.block13.residual.conv.weight[:, :, 0, 0], torch.from_numpy(kernel[0, 0].T))


def test_dense_layer_behind_a_flatten(tmp_path: Path) -> None:
    """Keras flattens row, column, channel; PyTorch channel, row, column."""
    model = VGG((1, 1, 1, 1, 1), 3, hidden=(5,), input_size=96).eval()  # a 3 x 3 map
    layers = random_layers(model)
    layers |= {"fc1": [normal(3 * 3 * 512, 5), normal(5)], "predictions": [normal(5, 3), normal(3)]}
    assert load_keras_weights(model, "vgg16", write_legacy(tmp_path / "w.h5", layers)).head_loaded
    maps = normal(2, 3, 3, 512)  # channels last, as in Keras
    hidden = np.maximum(maps.reshape(2, -1) @ layers["fc1"][0] + layers["fc1"][1], 0)
    expected = hidden @ layers["predictions"][0] + layers["predictions"][1]
    found = model.forward_head(torch.from_numpy(maps).permute(0, 3, 1, 2)).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-2)


def test_first_convolution_of_a_bgr_network_is_reversed(tmp_path: Path) -> None:
    """RGB with our mean and standard deviation gives the output of BGR minus Keras's mean."""
    model = VGG((1, 1, 1, 1, 1), 0, hidden=(), input_size=32, global_pool="").eval()
    layers = random_layers(model)
    path = write_legacy(tmp_path / "w.h5", layers)
    load_keras_weights(model, "vgg16", path)
    pixels = GENERATOR.integers(0, 256, (4, 4, 3)).astype(np.float32)
    keras_input = pixels[:, :, ::-1] - np.array([103.939, 116.779, 123.68])  # keras.applications, "caffe"
    kernel, bias = layers["block1_conv1"]
    expected = np.einsum("hwi,hwio->o", keras_input[:3, :3], kernel) + bias
    mean, std = MEAN_STD[input_mode("vgg16")]
    ours = torch.from_numpy((pixels / 255 - mean) / std).float().permute(2, 0, 1)[None]
    found = model.block1.conv1(ours)[0, :, 1, 1].detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-2)
    load_keras_weights(model, "vgg16", path, keras_input="unit")
    assert not np.allclose(model.block1.conv1(ours)[0, :, 1, 1].detach().numpy(), expected, rtol=0.1)


def test_grouped_convolution_from_a_depthwise_one_and_a_sum(tmp_path: Path) -> None:
    model = ResNet((1, 1, 1, 1), 0, widths=(64, 64, 64, 64), groups=4, bias=False, stride_on="middle").eval()
    layers = random_layers(model)
    load_keras_weights(model, "resnext50", write_legacy(tmp_path / "w.h5", layers))
    kernel = layers["conv2_block1_2_conv"][0]  # 3, 3, 64, 16
    x = normal(64, 3, 3)
    depthwise = np.einsum("chw,hwcm->cm", x, kernel).reshape(4, 16, 16)  # group, input, output
    found = model.stage2[0].main.conv2(torch.from_numpy(x)[None])[0, :, 1, 1].detach().numpy()
    np.testing.assert_allclose(found, depthwise.sum(1).reshape(-1), rtol=1e-3, atol=1e-3)


def test_names_of_the_course_fit_both_lineages(tmp_path: Path) -> None:
    course = ResNet((2, 1, 1, 1), 0, pad_stem_pool=False, epsilon=1e-3)
    layers = random_layers(course)
    assert {"conv1", "bn_conv1", "res2a_branch1", "bn2b_branch2c", "res5a_branch2a"} <= set(layers)
    path = write_legacy(tmp_path / "w.h5", layers)
    load_keras_weights(course, "resnet50_course", path)
    keras = ResNet((2, 1, 1, 1), 0)
    load_keras_weights(keras, "resnet50", path, keras_input="unit")
    state = keras.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in course.state_dict().items())


def test_old_names() -> None:
    old = ["conv1", "bn_conv1", "res2a_branch2a", "bn2a_branch1", "res4f_branch2c"]
    assert current_names(old) == [
        "conv1_conv",
        "conv1_bn",
        "conv2_block1_1_conv",
        "conv2_block1_0_bn",
        "conv4_block6_3_conv",
    ]
    assert current_names(["conv1/conv", "conv1"]) == ["conv1_conv", "conv1"]


def fill(model: nn.Module) -> None:
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.fill_(-1)


@pytest.mark.parametrize("form", ["weights.h5", "keras", "unnamed.weights.h5", "unnamed.keras"])
def test_keras_3(tmp_path: Path, form: str) -> None:
    model = small_mobilenet()
    layers = with_predictions(random_layers(model), 256, 6)
    load_keras_weights(model, "mobilenet", write_legacy(tmp_path / "legacy.h5", layers))
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fill(model)
    groups = None
    if form.startswith("unnamed"):  # early Keras 3: kinds and numbers in the order of model.layers
        groups = [row.name for row in renumbered(keras_layers(model)) if row.parameters] + ["conv2d_14"]
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        write_keras3(file, layers, named=groups is None, groups=groups)
    path = tmp_path / f"model.{form}"
    if form.endswith("keras"):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("config.json", "{}")
            archive.writestr("model.weights.h5", content.getvalue())
    else:
        path.write_bytes(content.getvalue())
    assert is_keras_file(path)
    if groups:  # the classifier is a conv2d like the others
        with pytest.raises(ModelFileError, match="in the file but not in the network: .*conv2d"):
            load_keras_weights(model, "mobilenet", path)
        return
    assert load_keras_weights(model, "mobilenet", path).head_loaded
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected[name]) or name.endswith("num_batches_tracked"), name


def test_unnamed_layers_match_by_kind_and_keras_order(tmp_path: Path) -> None:
    model = DenseNet((1, 1, 1, 1), 4).eval()
    layers = random_layers(model) | {"predictions": [normal(model.num_features, 4), normal(4)]}
    load_keras_weights(model, "densenet121", write_legacy(tmp_path / "legacy.h5", layers))
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fill(model)
    groups = [row.name for row in renumbered(keras_layers(model)) if row.parameters] + ["dense"]
    with h5py.File(tmp_path / "w.weights.h5", "w") as file:
        write_keras3(file, layers, named=False, groups=groups)
    assert load_keras_weights(model, "densenet121", tmp_path / "w.weights.h5").head_loaded
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected[name]) or name.endswith("num_batches_tracked"), name


def test_a_model_within_a_model(tmp_path: Path) -> None:
    inner = {"block1_conv1": [normal(3, 3, 3, 4)], "fc": [normal(4, 2)]}
    with h5py.File(tmp_path / "w.weights.h5", "w") as file:
        base = file.create_group("layers/functional")
        write_keras3(base, inner, named=True)
        write_keras3(file, {"dense": [normal(2, 1)]}, named=True, groups=["dense"])
    found = read_keras_file(tmp_path / "w.weights.h5")
    assert found.named and set(found.layers) == {"block1_conv1", "fc", "dense"}


def test_other_archives_are_errors(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.writestr("a.jpg", b"")
    assert not is_keras_file(tmp_path / "photos.zip")
    with pytest.raises(ModelFileError, match="holds no model.weights.h5"):
        read_keras_file(tmp_path / "photos.zip")
    with h5py.File(tmp_path / "empty.weights.h5", "w") as file:
        file.create_group("layers/conv2d/vars")
    with pytest.raises(ModelFileError, match="holds no layer with weights"):
        read_keras_file(tmp_path / "empty.weights.h5")


def test_input_range_of_each_keras_network() -> None:
    modes = {name: input_mode(name) for name, entry in REGISTRY.items() if entry.keras_name}
    assert {name for name, mode in modes.items() if mode == "tf"} == {
        *("xception", "inception_v3", "inception_resnet_v2", "mobilenet", "mobilenet_v2"),
        *("nasnet_mobile", "nasnet_large", "resnet50v2", "resnet101v2", "resnet152v2"),
    }
    for name in ("resnet50_course", "happy_model", "small_convnet", "cifar10_net"):
        assert input_mode(name) == "unit"
        mean, std = MEAN_STD["unit"]
        assert (mean, std) == (REGISTRY[name].preprocessing.mean, REGISTRY[name].preprocessing.std)
    with pytest.raises(UsageError, match="unknown keras_input 'bgr'; fix: use one of tf, torch, unit, caffe"):
        input_mode("vgg16", "bgr")


def test_keras_input_overrides_the_published_range(tmp_path: Path) -> None:
    """A VGG16 that was trained on RGB in 0..1, as in the original tutorials."""
    model = VGG((1, 1, 1, 1, 1), 0, hidden=(), input_size=32, global_pool="").eval()
    layers = random_layers(model)
    path = write_legacy(tmp_path / "w.h5", layers)
    published, unit = plan_weights("vgg16", str(path)), plan_weights("vgg16", str(path), "unit")
    assert published.preprocessing.std[0] == 1 / 255 and unit.preprocessing.std[0] == 1.0
    kernel = torch.from_numpy(layers["block1_conv1"][0]).permute(3, 2, 0, 1)
    load_weights(model, "vgg16", unit)
    assert torch.equal(model.block1.conv1.weight, kernel)
    load_weights(model, "vgg16", published)
    assert torch.equal(model.block1.conv1.weight, kernel.flip(1))
    with pytest.raises(ModelFileError, match="no weights file"):
        plan_weights("vgg16", str(tmp_path / "absent.h5"), "unit")


TUTORIALS = {  # network, names of its convolutions and norms, names of its dense layers
    "happy_model": (HappyModel(2), ["conv0", "bn0"], ["fc"]),
    "small_convnet": (
        SmallConvNet(5, input_size=38),
        [f"conv2d_{i}" for i in (7, 8, 9)],
        ["dense", "dense_1"],
    ),
    "cifar10_net": (Cifar10Net(), ["conv2d", "conv2d_1", "conv2d_2", "conv2d_3"], ["dense_1", "dense_2"]),
}


@pytest.mark.parametrize("name", TUTORIALS)
def test_small_networks_of_the_original_tutorials(tmp_path: Path, name: str) -> None:
    """Whole models with their dense layers; default names can start from any number."""
    model, names, dense = TUTORIALS[name]
    layers = dict(zip(names, random_layers(model).values(), strict=True))
    side = model.head.map_size
    widths = [side * side * model.num_features, *model.head.hidden, model.head.num_classes]
    layers |= {n: [normal(*pair), normal(pair[1])] for n, pair in zip(dense, pairwise(widths), strict=True)}
    report = load_keras_weights(model.eval(), name, write_legacy(tmp_path / "w.h5", layers))
    assert report.head_loaded and report.used == sum(map(len, layers.values()))
    assert torch.equal(next(model.parameters()), torch.from_numpy(layers[names[0]][0]).permute(3, 2, 0, 1))
    maps = normal(2, side, side, model.num_features)  # channels last, as Keras flattens them
    expected = maps.reshape(2, -1)
    for layer in dense:
        kernel, bias = layers[layer]
        expected = (expected if layer == dense[0] else np.maximum(expected, 0)) @ kernel + bias
    found = model.forward_head(torch.from_numpy(maps).permute(0, 3, 1, 2)).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * abs(expected).max())
