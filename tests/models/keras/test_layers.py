"""Keras's layer lists: counts, order, names; "freeze the first 249 layers"."""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from flowers_torch.errors import UsageError
from flowers_torch.models.factory import create_model
from flowers_torch.models.freeze import apply_rules, rules_for
from flowers_torch.models.inception_v3 import InceptionV3
from flowers_torch.models.inspect.summary import layer_rows, parameter_counts, summary
from flowers_torch.models.keras.layers import keras_layers, keras_prefix
from flowers_torch.models.registry import REGISTRY

SHARED = Path(os.environ.get("FLOWERS_TORCH_SHARED", ""))
ARCHS = {entry.keras_name: name for name, entry in REGISTRY.items() if entry.keras_name}

# Keras name: (parameters with top and 1000 classes, layers without top or 0, digest of that list)
KERAS = {
    "Xception": (22_910_480, 132, "9376af09f66dc0f9"),
    "VGG16": (138_357_544, 19, "8ec103bb61c3b3b9"),
    "VGG19": (143_667_240, 22, "f6937e8dbb7a4ba0"),
    "ResNet50": (25_636_712, 175, "6f3d2c129fb3dd07"),
    "ResNet101": (44_707_176, 345, "759bec9b2010d18d"),
    "ResNet152": (60_419_944, 515, "ad32513302143d97"),
    "ResNet50V2": (25_613_800, 190, "7ea98afbdf71bf16"),
    "ResNet101V2": (44_675_560, 377, "73de3d90758248b5"),
    "ResNet152V2": (60_380_648, 564, "da1bba69cf224974"),
    "ResNeXt50": (25_097_128, 0, ""),
    "ResNeXt101": (44_315_560, 0, ""),
    "InceptionV3": (23_851_784, 311, "de05ae8afc268801"),
    "InceptionResNetV2": (55_873_736, 780, "0d8633b8548e2736"),
    "MobileNet": (4_253_864, 86, "73095294011044de"),
    "MobileNetV2": (3_538_984, 154, "08355e3f8a0b92c7"),
    "DenseNet121": (8_062_504, 427, "86dbc952471edae4"),
    "DenseNet169": (14_307_880, 595, "5cb140f19a5b662c"),
    "DenseNet201": (20_242_984, 707, "edbf7f0691fd1f3a"),
    "NASNetMobile": (5_326_716, 769, "1f6282c6e6dcb76d"),
    "NASNetLarge": (88_949_818, 0, ""),
}
LISTED = [name for name, (_, layers, _) in KERAS.items() if layers]
FAST = ("Xception", "VGG16", "ResNet50", "ResNet50V2", "InceptionV3", "MobileNet", "MobileNetV2")
# Default names with a number, which depends on the Keras session.
COUNTED = re.compile(
    r"(conv2d|batch_normalization|activation|add|concatenate|max_pooling2d|average_pooling2d|zero_padding2d"
    r"|cropping2d|custom_scale_layer|input_layer)(_\d+)?"
)


def digest(rows: list[tuple[str, str, int, int]]) -> str:
    """SHA-256 of (name, class, channels, parameters) without the default names."""
    rows = [("" if COUNTED.fullmatch(name) else name, *rest) for name, *rest in rows]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


def build(name: str, **options: Any) -> nn.Module:
    with torch.device("meta"):
        return create_model(ARCHS[name], **options)


def own_rows(model: nn.Module) -> list[tuple[str, str, int, int]]:
    return [(row.name, row.kind, row.shape[-1], row.parameters) for row in keras_layers(model)]


@pytest.mark.parametrize("name", KERAS)
def test_parameters_as_keras_counts_them(name: str) -> None:
    assert parameter_counts(build(name))[0] == KERAS[name][0]


def test_all_twenty_networks_are_registered() -> None:
    assert len(KERAS) == 20 and set(KERAS) == set(ARCHS)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in LISTED]
)
def test_layers_are_those_of_keras_in_its_order(name: str) -> None:
    """The digests are of the lists of Keras 3.15 (see the next test)."""
    rows = own_rows(build(name))
    assert len(rows) == KERAS[name][1]
    assert digest(rows) == KERAS[name][2]


@pytest.mark.slow
@pytest.mark.parametrize("name", LISTED)
def test_digests_are_of_the_lists_of_keras(name: str) -> None:
    path = SHARED / "golden/keras_layers.json"
    if not path.exists():
        pytest.skip("needs Keras's layer lists under FLOWERS_TORCH_SHARED")
    expected = json.loads(path.read_text())["models"][name]
    rows = []
    for _, layer, kind, shapes, parameters in expected["layers_notop"]:
        shape = shapes[0] if isinstance(shapes[0], list) else shapes
        rows.append((layer, "Add" if kind == "CustomScaleLayer" else kind, shape[-1], parameters))
    assert own_rows(build(name)) == [
        (own[0] if COUNTED.fullmatch(row[0]) else row[0], *row[1:])
        for own, row in zip(own_rows(build(name)), rows, strict=True)
    ]
    assert (expected["total"], len(rows), digest(rows)) == KERAS[name]


def test_mobilenet_widths() -> None:
    """The counts of Keras 3.15, with top."""
    counts = {alpha: parameter_counts(build("MobileNet", alpha=alpha))[0] for alpha in (0.25, 0.5, 0.75)}
    assert counts == {0.25: 475_544, 0.5: 1_342_536, 0.75: 2_601_976}
    assert parameter_counts(build("MobileNet", alpha=0.25, depth_multiplier=2))[0] == 687_888
    assert parameter_counts(build("MobileNetV2", alpha=1.4))[0] == 6_156_712
    deep = build("MobileNet", depth_multiplier=2)
    assert deep.blocks.block3.dw.weight.shape == (256, 1, 3, 3)


@pytest.mark.parametrize("rate", [1e-3, 0.5])
def test_mobilenet_dropout(rate: float) -> None:
    drops = [module.p for module in build("MobileNet", dropout=rate).modules() if isinstance(module, nn.Dropout)]
    assert drops == [rate]


def test_first_249_layers_are_all_but_the_last_two_blocks() -> None:
    model = InceptionV3(num_classes=5)
    apply_rules(model, rules_for(model, "keras:249"))
    trained = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    frozen = {name.split(".")[0] for name, p in model.named_parameters() if not p.requires_grad}
    assert trained == {"Mixed_7b", "Mixed_7c", "fc"} and not trained & frozen
    layers = keras_layers(model)
    assert (layers[248].name, layers[248].module, len(layers)) == ("mixed8", "Mixed_7a.cat", 311)


def test_a_prefix_can_end_within_a_block() -> None:
    model = InceptionV3(num_classes=5)
    names = keras_prefix(model, 250)
    assert names[-1] == "Mixed_7b.branch3x3dbl_1.conv" and len(names) == len(keras_prefix(model, 249)) + 1


@pytest.mark.parametrize("train", ["keras:0", "keras:312", "keras:", "keras:two"])
def test_the_error_for_an_impossible_number_names_the_range(train: str) -> None:
    with pytest.raises(UsageError, match="use keras:1 to keras:311"):
        rules_for(build("InceptionV3"), train)


def test_a_network_that_keras_lacks_is_an_error() -> None:
    with pytest.raises(UsageError, match="LeNet5 is not a network of Keras"):
        keras_layers(create_model("lenet5"))


def course_resnet() -> nn.Module:
    with torch.device("meta"):
        return create_model("resnet50_course", 6)


def flowers_inception() -> nn.Module:
    with torch.device("meta"):
        model = InceptionV3()
        model.fc = nn.Sequential(nn.Linear(2048, 1024), nn.ReLU(), nn.Linear(1024, 17))
    return model


def test_totals_of_the_original_tutorials() -> None:
    assert parameter_counts(course_resnet()) == (23_600_006, 23_600_006 - 53_120)
    assert parameter_counts(flowers_inception()) == (23_918_385, 23_883_953)
    with torch.device("meta"):
        assert parameter_counts(create_model("happy_model", 1)) == (37_633, 37_569)


@pytest.mark.parametrize(
    ("build_model", "document", "count", "size"),
    [(course_resnet, "001_", 177, 64), (flowers_inception, "000_", 314, 299)],
)
def test_tables_of_the_original_tutorials(build_model, document: str, count: int, size: int) -> None:
    """Names (default ones by rank), order, parameters, and ResNet50's shapes. The tables cut long cells."""
    files = sorted(SHARED.glob(f"seeds/{document}*"))
    if not files:
        pytest.skip("needs the original tutorials under FLOWERS_TORCH_SHARED")
    pattern = re.compile(r"^ *(\w+) \((\w+)\)? *(\([\w, ]+\)?|\([\w, ]+ 3) +(\d+) ", re.MULTILINE)
    table = re.split(r"Layer \(type\).*Connected to", files[0].read_text())[1].split("Total params")[0]
    expected = pattern.findall(table)
    rows = layer_rows(build_model(), size, keras=True)
    assert len(rows) == count == len(expected)
    offsets: dict[str, int] = {}
    for row, (name, kind, shape, parameters) in zip(rows, expected, strict=True):
        assert row.kind.startswith(kind) and row.parameters == int(parameters), (row, name)
        counted = re.fullmatch(r"(?!input)([a-z_]+(?:2d)?)_(\d+)", name)
        if counted and row.name.startswith(counted[1]):
            number = int(row.name[len(counted[1]) + 1 :] or 0)
            assert offsets.setdefault(counted[1], int(counted[2]) - number) == int(counted[2]) - number
        elif not name.startswith(("input", "avg_pool", "fc")):
            assert row.name == name
        if document == "001_":
            assert shape == f"({', '.join(['None', *map(str, row.shape[1:])])})"


def test_summary_has_a_line_per_layer_and_the_totals() -> None:
    text = summary(course_resnet(), 64, keras=True).splitlines()
    assert len(text) == 3 + 177 + 3
    assert text[-3:] == ["Total parameters: 23,600,006", "Trainable: 23,546,886", "Non-trainable: 53,120"]
    assert re.fullmatch(r"add \(Add\) +\(None, 15, 15, 256\) +0  bn2a_branch2c, bn2a_branch1", text[18])
