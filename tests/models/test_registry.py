"""The registry: names, sizes, `create_model` with and without classifier and weights."""

from pathlib import Path
from typing import Any, Literal

import pytest
import timm
import torch

from flowers_torch.errors import ModelFileError, UsageError
from flowers_torch.models.checkpoint import ModelInfo, build
from flowers_torch.models.factory import create_model
from flowers_torch.models.heads import remove_head
from flowers_torch.models.inspect.layer_features import features
from flowers_torch.models.keras.names import PUBLISHED, published_by_keras
from flowers_torch.models.registry import (
    REGISTRY,
    build_network,
    find_entry,
    imagenet_entry,
    input_options,
    list_models,
    register,
)
from flowers_torch.models.weights import load_weights, plan_weights

SLOW = {"nasnet_large", "nasnet_mobile", "inception_resnet_v2", "densenet201", "resnet152v2", "resnet152"}
SLOW |= {"densenet169", "resnet101", "resnet101v2", "resnext101"}
every = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in REGISTRY]
)


def test_names_are_unique() -> None:
    names = list_models()
    assert len(set(names)) == len(names) and set(names[: len(REGISTRY)]) == set(REGISTRY)
    assert {"resnet50", "timm:resnet50", "vit_base_patch16_224"} <= set(names)
    with pytest.raises(ValueError, match="'vgg16' is registered twice"):
        register("vgg16", REGISTRY["vgg16"])


@pytest.mark.parametrize(
    ("name", "near"),
    [("resnet5", "resnet50"), ("timm:resnet5O", "timm:resnet50"), ("xzq\n", "flowers-torch models")],
)
def test_the_error_for_an_unknown_name_lists_near_matches(name: str, near: str) -> None:
    with pytest.raises(UsageError, match=f"no network is called .*{near}"):
        create_model(name)


@pytest.mark.parametrize("name", ["densenet121", "vgg16", "resnet50", "inception_v3", "resnet50.tv_in1k"])
def test_timm_prefix_selects_timms_network(name: str) -> None:
    theirs = name if "." in name else f"timm:{name}"
    with torch.device("meta"):
        found = create_model(theirs, 5, in_chans=1)
        assert type(found).__module__.startswith("timm.")
        assert type(create_model(name.partition(".")[0])).__module__.startswith("flowers_torch.")
        assert found.eval()(torch.empty(2, 1, 224, 224)).shape == (2, 5)
    entry = find_entry(theirs)
    assert entry.timm_name == name
    assert entry.min_size == find_entry(name.partition(".")[0]).min_size or "." in name


@pytest.mark.parametrize("name", [name for name, entry in REGISTRY.items() if entry.timm_name])
def test_a_handwritten_network_reads_images_as_timms_does(name: str) -> None:
    """`imagenet_entry` follows a later timm; the registry has to be corrected by hand."""
    ours, theirs = find_entry(name), imagenet_entry(name)
    assert (ours.preprocessing, ours.timm_name) == (theirs.preprocessing, theirs.timm_name)
    assert theirs.license and ours.min_size >= theirs.min_size


def test_keras_published_every_network(shared: Path) -> None:
    """The table of the tutorial on `keras.applications`, and the smallest images of its time."""
    (document,) = (shared / "seeds").glob("003_*.txt")
    table = {}
    for line in document.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip(" *[") for cell in line.strip("|").split("|")]
        if len(cells) == 6 and cells[1].endswith(" MB"):
            table[cells[0].partition("]")[0]] = (int(cells[1][:-3]), *map(float, cells[2:4]), cells[5])
    for name, row in PUBLISHED.items():
        assert (row["megabytes"], row["top1"], row["top5"], str(row.get("depth", "-"))) == table.pop(name)
    ours = {entry.keras_name: entry.min_size for entry in REGISTRY.values() if entry.keras_name}
    assert not table and set(ours) == set(PUBLISHED)
    theirs = {name: published_by_keras(name, size)["min_size"] for name, size in ours.items()}
    assert [theirs[name] for name in ("InceptionV3", "InceptionResNetV2", "ResNet50")] == [139, 139, 197]
    assert theirs["Xception"] == 71 and all(theirs[name] >= size for name, size in ours.items())


@every
def test_smallest_size_works_and_a_smaller_one_is_an_error(name: str) -> None:
    size = find_entry(name).min_size
    assert input_options(name, size) == {}
    with pytest.raises(UsageError, match=f"--size {size - 1} is too small for {name}"):
        input_options(name, size - 1)
    with torch.device("meta"):
        network = create_model(name, 5, size=size).eval()
        assert network(torch.empty(2, 3, size, size)).shape == (2, 5)


@every
def test_usual_size_works(name: str) -> None:
    size = find_entry(name).preprocessing.size
    with torch.device("meta"):
        network = create_model(name, 5).eval()
        assert network(torch.empty(2, 3, size, size)).shape == (2, 5)


def test_model_info_builds_a_flattening_network_for_its_image_size() -> None:
    preprocessing = find_entry("small_convnet").preprocessing
    info = ModelInfo("small_convnet", ("a", "b", "c"), preprocessing, head_hidden=8, dropout=0.5)
    assert build(info).eval()(torch.zeros(1, 3, 150, 150)).shape == (1, 3)


@pytest.mark.parametrize("source", ["imagenet", "file"])
@pytest.mark.parametrize(
    ("name", "options"), [("resnet50", {}), pytest.param("vgg16", {"hidden": ()}, marks=pytest.mark.slow)]
)
def test_weights_of_timm_give_its_features(
    source: str, name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`--weights imagenet` with random weights in place of the download, and `--weights FILE`."""
    torch.manual_seed(0)
    theirs = timm.create_model(name)
    file = tmp_path / "weights.pth"
    torch.save(theirs.state_dict(), file)
    monkeypatch.setattr("flowers_torch.models.weights.fetch_imagenet", lambda arch: file)

    plan = plan_weights(name, "imagenet" if source == "imagenet" else str(file))
    ours = create_model(name, 5, **(plan.options | options))
    assert load_weights(ours, name, plan).endswith("head newly initialized")
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        expected, found = theirs.eval().forward_features(images), ours.eval().forward_features(images)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_a_file_with_our_names_keeps_the_default_lineage(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    torch.save(create_model("resnet50", 3, lineage="keras").state_dict(), file)
    plan = plan_weights("resnet50", str(file))
    assert plan.options == {}
    assert load_weights(create_model("resnet50", 3), "resnet50", plan).endswith("head loaded")


@every
def test_without_classifier(name: str) -> None:
    """As in Keras, include_top=False also removes the dense layers before the classifier."""
    size = find_entry(name).min_size
    with torch.device("meta"):
        network = create_model(name, include_top=False, size=size).eval()
        features = network(torch.empty(2, 3, size, size))
        assert features.shape[:2] == (2, network.num_features) and features.ndim == 4
        assert not any(isinstance(module, torch.nn.Linear) for module in network.modules())
        remove_head(network, "max")
        assert network(torch.empty(2, 3, size, size)).shape == (2, network.num_features)


@pytest.mark.parametrize("name", ["cifar_resnet", "small_convnet", "test_resnet"])
@pytest.mark.parametrize("pooling", ["avg", "max"])
def test_pooled_features(name: str, pooling: Literal["avg", "max"]) -> None:
    network = create_model(name, in_chans=4, include_top=False, pooling=pooling).eval()
    images = torch.randn(2, 4, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(network(images), features(network, images, pooling=pooling))


def test_weights_of_a_file_with_and_without_classifier(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    source = create_model("cifar_resnet", 7, depth=8).eval()
    file = tmp_path / "weights.pth"
    torch.save(source.state_dict(), file)
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode(), caplog.at_level("INFO", "flowers_torch"):
        same = create_model("cifar_resnet", 7, weights=str(file), depth=8).eval()
        assert torch.equal(same(images), source(images)) and "head loaded" in caplog.text
        caplog.clear()
        other = create_model("cifar_resnet", 3, weights=str(file), depth=8).eval()
        assert other(images).shape == (2, 3) and "head newly initialized" in caplog.text
        body = create_model("cifar_resnet", weights=str(file), include_top=False, depth=8).eval()
        assert torch.equal(body(images), source.forward_features(images))
    with pytest.raises(ModelFileError, match="of another shape .*conv1.weight"):
        create_model("cifar_resnet", 7, in_chans=1, weights=str(file), depth=8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pooling": "avg"}, "pooling='avg' with include_top=True; fix: .* include_top=False"),
        ({"pooling": "mean", "include_top": False}, "pooling='mean'.*fix: give pooling='avg'"),
        ({"size": 31}, "--size 31 is too small for vgg16"),
        ({"alpha": 0.5}, "'alpha' is not an option of vgg16; fix: use "),
        ({"weights": "offline"}, "holds tf_efficientnet_lite0, .* not vgg16"),
        (
            {"weights": "none", "keras_input": "tf"},
            "keras_input=tf needs a Keras file, not none",
        ),
    ],
)
def test_invalid_arguments_are_an_error(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        create_model("vgg16", **arguments)


def test_a_network_without_pooling_options_is_an_error() -> None:
    class Fixed(torch.nn.Module):
        def reset_classifier(self, num_classes: int) -> None: ...

    with pytest.raises(UsageError, match="Fixed has no pooling 'avg' of its features"):
        remove_head(Fixed(), "avg")


def test_alternatives_have_pretrained_weights() -> None:
    entries = [entry for entry in REGISTRY.values() if entry.timm_alternative]
    assert len(entries) >= 5 and not any(entry.timm_name for entry in entries)
    assert all(timm.get_pretrained_cfg(entry.timm_alternative).has_weights for entry in entries)


# Everything that timm's `create_model` takes beside the network's own options, and what it passes on.
FOREIGN_OPTIONS = (
    *("checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"),
    *("scriptable", "exportable", "no_jit", "model_name", "features_only", "out_indices", "feature_cfg"),
    *("pretrained_strict", "kwargs_filter", "pretrained_filter_fn", "model_cls", "pretrained_tag"),
    *("variant", "default_cfg", "file", "url", "hf_hub_id", "hf_hub_filename", "custom_load"),
    *("state_dict", "source", "self", "kwargs", "no_such"),
)


@pytest.mark.parametrize("option", FOREIGN_OPTIONS)
@pytest.mark.parametrize("name", ["timm:resnet18", "timm:vit_tiny_patch16_224"])
def test_options_from_a_file_reach_the_constructor_only(
    name: str, option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("timm.models._builder.load_pretrained", pytest.fail)
    monkeypatch.setattr("timm.models._factory.load_checkpoint", pytest.fail)
    with pytest.raises(UsageError, match="is not an option of"):
        build_network(name, 3, options={option: str(tmp_path / "evil.pth")})


@pytest.mark.parametrize("value", [{"file": "evil.pth"}, [["a"]], object(), [{"a": 1}]])
def test_values_of_options_are_plain(value: object) -> None:
    with pytest.raises(UsageError, match="must be a number"):
        build_network("timm:resnet18", 3, options={"stem_width": value})


def test_options_of_the_constructor_are_passed_on() -> None:
    network = build_network("timm:resnet18", 3, options={"stem_width": 16, "drop_rate": 0.5})
    assert network.conv1.out_channels != 64 or network.drop_rate == 0.5
    assert network.fc.out_features == 3
