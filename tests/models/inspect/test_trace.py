"""Trace, features, summary and drawing of a network; ImageNet's class names."""

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
import timm
import torch
from torch import Tensor, nn

from flowers_torch.errors import UsageError
from flowers_torch.models.factory import create_model
from flowers_torch.models.imagenet import decode_predictions, imagenet_classes
from flowers_torch.models.inspect.layer_features import features
from flowers_torch.models.inspect.plot import layout, plot
from flowers_torch.models.inspect.summary import layer_rows, summary
from flowers_torch.models.inspect.trace import layer_output, trace
from flowers_torch.models.keras.layers import KerasLayer
from flowers_torch.models.mobilenet import MobileNet


class Forked(nn.Module):
    """Two branches, one ReLU used twice and in place, a sum in place, a concatenation, a bare parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4))
        self.relu = nn.ReLU(inplace=True)
        self.branch = nn.Conv2d(4, 4, 1)
        self.scale = nn.Parameter(torch.ones(4, 1, 1))
        self.idle = nn.Identity()
        self.fc = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem(x))
        y = self.relu(self.branch(self.idle(x)))
        y += x
        x = torch.cat([x * self.scale, y], 1)
        return self.fc(x.mean((2, 3)))


@pytest.fixture
def model() -> Forked:
    torch.manual_seed(0)
    return Forked()


def test_nodes_and_connections(model: Forked) -> None:
    nodes = trace(model, 8)
    names = [node.name for node in nodes]
    assert names == [
        *("input", "stem.0", "stem.1", "relu", "branch", "relu_1", "add", "mul", "cat", "mean", "fc"),
    ] or names == [n if n != "mul" else "scale" for n in names]
    inputs = {node.name: [nodes[i].name for i in node.inputs] for node in nodes}
    assert inputs["branch"] == ["relu"] and inputs["add"] == ["relu_1", "relu"]
    assert inputs["cat"] == ["mul", "add"] and inputs["mul"] == ["relu"]
    assert nodes[-1].shape == (1, 2) and nodes[1].shape == (1, 4, 8, 8)


def test_every_parameter_and_buffer_is_counted_once(model: Forked) -> None:
    counted = [size for node in trace(model, 8) for size in node.sizes.items()]
    state = model.state_dict().items()
    assert sorted(counted) == sorted((n, t.numel()) for n, t in state if n != "stem.1.num_batches_tracked")


def test_tracing_changes_nothing(model: Forked) -> None:
    model.train()
    model.branch.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trace(model, 8)
    assert model.training and model.stem[1].training and not model.branch.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "efficientnet_b0"])
def test_trace_of_timms_networks_is_complete(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    rows = layer_rows(model, 224)
    total = sum(t.numel() for n, t in model.state_dict().items() if not n.endswith("num_batches_tracked"))
    assert sum(row.parameters for row in rows) == total
    assert f"Total parameters: {total:,}" in summary(model, 224)
    assert rows[-1].shape == (1, 1000)


@pytest.mark.parametrize("layer", ["stem", "stem.1", "add", "fc"])
def test_output_of_a_named_layer(model: Forked, layer: str) -> None:
    images = torch.randn(2, 3, 8, 8)
    model.eval()
    with torch.no_grad():
        stem = model.stem(images)
        x = stem.relu()
        expected = {
            "stem": stem,
            "stem.1": stem,
            "add": model.branch(x).relu() + x,
            "fc": model(images),
        }[layer]
        # The network's ReLU works in place, so the pass must end before it.
        torch.testing.assert_close(layer_output(model, images, layer), expected)


def test_layers_behind_the_target_do_not_run(model: Forked) -> None:
    ran = []
    model.fc.register_forward_hook(lambda *_: ran.append(1))
    layer_output(model, torch.randn(1, 3, 8, 8), "branch")
    assert not ran


def test_features_by_module_name_by_keras_name_and_of_the_last_map() -> None:
    model = MobileNet(num_classes=3, alpha=0.25).train()
    images = torch.randn(2, 3, 64, 64)
    by_module = features(model, images, "blocks.block3.pw_relu")
    assert by_module.shape == (2, 32, 16, 16)
    assert torch.equal(by_module, features(model, images, "conv_pw_3_relu"))
    torch.testing.assert_close(features(model, images, "conv_pw_3_relu", "avg"), by_module.mean((2, 3)))
    torch.testing.assert_close(features(model, images, "conv_pw_3_relu", "max"), by_module.amax((2, 3)))
    assert features(model, images, "conv_pw_3_relu", "flatten").shape == (2, 32 * 16 * 16)
    assert torch.equal(features(model, images), features(model, images, "conv_pw_13_relu"))
    assert model.training and not by_module.requires_grad
    with pytest.raises(UsageError, match="no layer 'conv_pw_99'"):
        features(model, images, "conv_pw_99")
    with pytest.raises(UsageError, match="no pooling 'mean'"):
        features(model, images, pooling="mean")


def test_block4_pool_of_vgg19() -> None:
    model = create_model("vgg19", 2, size=32, hidden=()).eval()
    images = torch.randn(1, 3, 32, 32)
    found = features(model, images, "block4_pool")
    pools, expected = 0, images
    for layer in model.modules():
        if pools < 4 and isinstance(layer, nn.Conv2d | nn.MaxPool2d):
            expected = layer(expected)
            pools += isinstance(layer, nn.MaxPool2d)
            expected = expected.relu()  # no effect behind a pooling
    assert found.shape == (1, 512, 2, 2)
    torch.testing.assert_close(found, expected)


def test_decode_predictions() -> None:
    logits = torch.zeros(2, 1000)
    logits[0, 385], logits[0, 101], logits[0, 386], logits[1, 0] = 7.0, 6.0, 5.0, 9.0
    first, second = decode_predictions(logits)
    printed = [("n02504013", "Indian_elephant"), ("n01871265", "tusker"), ("n02504458", "African_elephant")]
    assert [row[:2] for row in first] == printed and second[0][:2] == ("n01440764", "tench")
    assert first[0][2] == pytest.approx(float(logits[0].softmax(0)[385]))
    assert len(imagenet_classes()) == 1000
    with pytest.raises(UsageError, match="these are 2 x 17"):
        decode_predictions(torch.zeros(2, 17))
    with pytest.raises(UsageError, match="top=0"):
        decode_predictions(logits, top=0)


def row(name: str, *inputs: str) -> KerasLayer:
    return KerasLayer(name, "Conv2d", (1, 2), 0, name, inputs)


def test_layout_places_layers_below_their_inputs_without_overlap() -> None:
    rows = [row("in"), row("a", "in"), row("b", "a"), row("c", "in"), row("sum", "b", "c", "in")]
    places, lines = layout(rows)
    assert {name: place[1] for name, place in places.items()} == {"in": 0, "a": 1, "c": 1, "b": 2, "sum": 3}
    assert len(set(places.values())) == 5
    skip = next(line for line in lines if line[0] == places["in"] and line[-1] == places["sum"])
    assert [y for _, y in skip] == [0, 1, 2, 3]  # passes each row at a place of its own
    assert not {place for line in lines for place in line[1:-1]} & set(places.values())


def test_plot_of_a_network(tmp_path: Path, model: Forked) -> None:
    path, rows = tmp_path / "graph.svg", layer_rows(model, 8)
    plot(rows, path, "forked & joined")
    drawing = ElementTree.parse(path).getroot()
    names = [text.text for text in drawing.iter("{http://www.w3.org/2000/svg}text")]
    assert names[0] == "forked & joined" and {row.name for row in rows} <= {*names}
    assert len(list(drawing.iter("{http://www.w3.org/2000/svg}rect"))) == len(rows)
    with pytest.raises(UsageError, match=r"ends in .svg"):
        plot(layer_rows(model, 8), tmp_path / "graph.jpg")


def test_colors_follow_the_kind(tmp_path: Path) -> None:
    rows = [replace(row("a"), kind="ZeroPadding2D"), replace(row("b", "a"), kind="Conv2D")]
    plot(rows, tmp_path / "padded.svg")
    plot([*rows, replace(row("c", "a", "b"), kind="Add")], tmp_path / "added.svg")
    colors = [(tmp_path / name).read_text().count("#fbf3c0") for name in ("padded.svg", "added.svg")]
    assert colors == [0, 1]
