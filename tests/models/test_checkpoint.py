"""A trained classifier as one file."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from flowers_torch.data.preprocessing import Preprocessing
from flowers_torch.errors import ModelFileError
from flowers_torch.files.tensors import safe_load, safe_save
from flowers_torch.models import checkpoint
from flowers_torch.models.checkpoint import FORMAT, ModelInfo, build, load_classifier, save_classifier

INFO = ModelInfo(
    arch="test_resnet",
    classes=("rose", "<script>", "\x1b[31m"),
    preprocessing=Preprocessing(size=64, mean=(0.5, 0.5, 0.5), stretch=True),
    head_hidden=8,
    dropout=0.2,
    weights="none",
)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_classifier(build(INFO).state_dict(), INFO, tmp_path / "model.safetensors", best={"epoch": 3})
    return tmp_path / "model.safetensors"


def test_network_and_metadata_round_trip(saved: Path) -> None:
    torch.manual_seed(0)
    original = build(INFO).eval()
    for path in (saved, saved.parent):
        model, info = load_classifier(path)
        assert info == INFO and not model.training
        images = torch.randn(2, 3, 64, 64)
        assert torch.equal(model(images), original(images))


def change_metadata(path: Path, change: dict[str, object]) -> None:
    tensors, metadata = safe_load(path)
    safe_save(tensors, path, metadata | change)


def test_a_network_is_built_once_if_the_file_has_all_of_it(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = []

    def counted(info: ModelInfo) -> nn.Module:
        built.append(build(info))
        return built[-1]

    monkeypatch.setattr(checkpoint, "build", counted)
    model, _ = load_classifier(saved)
    assert len(built) == 1 and all(parameter.requires_grad for parameter in model.parameters())
    monkeypatch.setattr(checkpoint, "_is_all_state", lambda model: False)
    again, _ = load_classifier(saved)
    assert len(built) == 3
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), again.parameters(), strict=True))


def test_what_no_state_dict_has() -> None:
    whole, tied, hidden = (nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)) for _ in range(3))
    tied[1].weight = tied[0].bias
    hidden[0].steps = {"all": [torch.ones(1)]}
    short = nn.Linear(2, 2)
    short.register_buffer("places", torch.ones(1), persistent=False)
    assert [checkpoint._is_all_state(model) for model in (whole, tied, hidden, short)] == [True, False, False, False]


def test_the_error_for_a_newer_format_asks_for_an_update(saved: Path) -> None:
    change_metadata(saved, {"format": FORMAT + 1})
    with pytest.raises(ModelFileError, match="pip install -U"):
        load_classifier(saved)


def test_the_error_for_weights_that_do_not_fit_lists_them(saved: Path) -> None:
    change_metadata(saved, {"model_info": dataclasses.asdict(dataclasses.replace(INFO, head_hidden=9))})
    with pytest.raises(ModelFileError, match=r"of another shape \(fc\.hidden\.weight"):
        load_classifier(saved)


def test_nan_is_an_error(saved: Path) -> None:
    tensors, metadata = safe_load(saved)
    tensors["fc.out.bias"][0] = torch.nan
    safe_save(tensors, saved, metadata)
    with pytest.raises(ModelFileError, match=r"not finite \(fc\.out\.bias\)"):
        load_classifier(saved)


def test_weights_without_metadata_are_an_error(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "a.pth")
    with pytest.raises(ModelFileError, match="not how to use them"):
        load_classifier(tmp_path / "a.pth")


HALF = "AAA="  # one number
ODD: tuple[tuple[str, object, str], ...] = (
    *(("classes", value, "classes|class") for value in (None, [], ["a"], ["a", 1, "b"], ["a" * 5000, "b", "c"], 10**8)),
    *(("temperature", value, "temperature") for value in (0, -1.0, math.inf, math.nan, "1", [1.0], 10**400)),
    *(("dropout", value, "dropout") for value in (2, 1.0, -0.1, True)),
    *(("head_hidden", value, "head_hidden") for value in (-1, 1.5, 2**40)),
    *(("head", value, "head") for value in ("other", 1)),
    *(("head_norm", 1, "head_norm"), ("arch", ["x"], "arch"), ("model_options", [], "model_options")),
    *(("license", {}, "license"), ("unknown", 1, "unknown"), ("preprocessing", [], "preprocessing")),
    ("selective", {"curve": [[0.9, 1, 0], ["x"]]}, "curve"),
    ("selective", {"ood_detector": {"center": HALF, "directions": "%", "features": 1, "threshold": 1.0}}, "directions"),
)
ODD_PREPROCESSING = (
    *(("crop", value) for value in (0, 2, -1.0, None, "x")),
    *(("std", value) for value in ([0, 0, 0], [1.0], [1e39] * 3, 1.0, ["x"] * 3)),
    *(
        ("mean", [[0.5]] * 3),
        ("size", 0),
        ("size", 10**9),
        ("size", 224.5),
        ("interpolation", "spline"),
        ("stretch", 1),
    ),
)


@pytest.mark.parametrize(("key", "value", "reason"), ODD)
def test_metadata_have_types_ranges_and_lengths(saved: Path, key: str, value: object, reason: str) -> None:
    change_metadata(saved, {"model_info": dataclasses.asdict(INFO) | {key: value}})
    with pytest.raises(ModelFileError, match=f"model.safetensors is not a valid weights file .*{reason}"):
        load_classifier(saved)


@pytest.mark.parametrize(("key", "value"), ODD_PREPROCESSING)
def test_preprocessing_has_types_and_ranges(saved: Path, key: str, value: object) -> None:
    preprocessing = dataclasses.asdict(INFO.preprocessing) | {key: value}
    change_metadata(saved, {"model_info": dataclasses.asdict(INFO) | {"preprocessing": preprocessing}})
    with pytest.raises(ModelFileError, match=f"model.safetensors is not a valid weights file .*preprocessing.{key}"):
        load_classifier(saved)


@pytest.mark.parametrize("value", ["x", None, [1], {"a": {}}])
def test_a_format_or_metadata_of_another_type(saved: Path, value: object) -> None:
    for key in ("format", "model_info"):
        change_metadata(saved, {"format": 1, key: value})
        with pytest.raises(ModelFileError, match="model.safetensors is not a valid weights file"):
            load_classifier(saved)


def test_classes_have_names_of_their_own(saved: Path) -> None:
    for classes in (["rose", "", "tulip"], ["rose", "tulip", "rose"]):
        change_metadata(saved, {"model_info": dataclasses.asdict(INFO) | {"classes": classes}})
        with pytest.raises(ModelFileError, match="a class has no name, or two have the same"):
            load_classifier(saved)


def test_an_image_is_not_resized_beyond_reason(saved: Path) -> None:
    preprocessing = dataclasses.asdict(INFO.preprocessing) | {"size": 4096, "crop": 0.01}
    change_metadata(saved, {"model_info": dataclasses.asdict(INFO) | {"preprocessing": preprocessing}})
    with pytest.raises(ModelFileError, match="crop 0.01 of 4096 pixels is too small"):
        load_classifier(saved)


@pytest.mark.parametrize(
    "curve", [[[0.5, 0, 0]], [[0.9, 2, 1], [0.5, 2, 1]], [[0.9, 2, 1], [0.5, 3, 0]], [[0.5, 1, 2]]]
)
def test_a_curve_counts_upwards(saved: Path, curve: list[list[float]]) -> None:
    change_metadata(saved, {"model_info": dataclasses.asdict(INFO) | {"selective": {"curve": curve}}})
    with pytest.raises(ModelFileError, match="its risk-coverage curve is not one"):
        load_classifier(saved)


@pytest.mark.parametrize(
    "quantiles", [[[0.5, 2]], [[0.5, 1], [0.4, 2]], [[0.5, 1], [0.6, 1]], [[0.5, 1], [0.6, 11]], [[1.5, 1]]]
)
def test_quantiles_rise_within_the_images(saved: Path, quantiles: list[list[float]]) -> None:
    sets = {"images": 10, "quantiles": quantiles}
    change_metadata(saved, {"model_info": dataclasses.asdict(INFO) | {"selective": {"sets": sets}}})
    with pytest.raises(ModelFileError, match="its prediction sets are not any"):
        load_classifier(saved)


def test_a_detector_of_another_width(saved: Path) -> None:
    detector = {"center": HALF, "directions": HALF, "features": 1, "threshold": 1.0}
    change_metadata(saved, {"model_info": dataclasses.asdict(INFO) | {"selective": {"ood_detector": detector}}})
    with pytest.raises(ModelFileError, match="a detector of 1 features for a network of 96"):
        load_classifier(saved)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"arch": "\x1b[2Jx"}, "no network is called"),
        ({"model_options": {"checkpoint_path": "/etc/passwd"}}, "is not an option"),
        ({"model_options": {"layers": [300, 1, 1, 1]}}, "many more parameters than the file has tensors"),
        ({"head_hidden": 1 << 20}, "of another shape"),  # 2 GB, which are never asked for
    ],
)
def test_a_network_is_compared_with_the_file_before_it_gets_memory(
    saved: Path, change: dict[str, object], reason: str
) -> None:
    change_metadata(saved, {"model_info": dataclasses.asdict(INFO) | change})
    with pytest.raises(ModelFileError, match=f"model.safetensors.*{reason}") as caught:
        load_classifier(saved)
    assert str(caught.value).isprintable()


def test_tensors_of_another_type_and_negative_variances(saved: Path) -> None:
    tensors, metadata = safe_load(saved)
    whole = tensors["fc.out.bias"]
    safe_save(tensors | {"fc.out.bias": whole.long()}, saved, metadata)
    with pytest.raises(ModelFileError, match=r"1 of another type \(fc.out.bias\)"):
        load_classifier(saved)
    safe_save(tensors | {"fc.out.bias": whole.double() + 1e300}, saved, metadata)  # finite until it is loaded
    with pytest.raises(ModelFileError, match=r"1 not finite \(fc.out.bias\)"):
        load_classifier(saved)
    safe_save(tensors | {"bn1.running_var": -tensors["bn1.running_var"]}, saved, metadata)
    with pytest.raises(ModelFileError, match=r"1 negative \(bn1.running_var\)"):
        load_classifier(saved)
