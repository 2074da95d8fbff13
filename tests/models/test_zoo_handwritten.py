"""The handwritten networks as the zoo hands them out."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from flowers_torch.errors import UsageError
from flowers_torch.models.classifier import Record, build
from flowers_torch.models.network import Network
from flowers_torch.models.weights import load_weights, plan_weights
from flowers_torch.models.zoo import REGISTRY, check_size, create_model, find_entry

HANDWRITTEN = [name for name, entry in REGISTRY.items() if entry.sized]


def test_the_zoo_has_them_all() -> None:
    some = {"resnet50", "resnet152v2", "resnext101", "vgg19", "alexnet", "lenet5", "googlenet", "happy_model"}
    assert some <= set(HANDWRITTEN)


@pytest.mark.parametrize("name", HANDWRITTEN)
def test_smallest_size_works_and_smaller_is_refused(name: str) -> None:
    size = find_entry(name).min_size
    check_size(name, size)
    with pytest.raises(UsageError, match=f"--size {size - 1} is too small for {name}"):
        check_size(name, size - 1)
    with torch.device("meta"):
        network = create_model(name, 5, size=size).eval()
        assert isinstance(network, Network)
        assert network(torch.empty(2, 3, size, size)).shape == (2, 5)


@pytest.mark.parametrize("name", HANDWRITTEN)
def test_usual_size_works(name: str) -> None:
    size = find_entry(name).preprocessing.size
    with torch.device("meta"):
        network = create_model(name, 5).eval()
        assert network(torch.empty(2, 3, size, size)).shape == (2, 5)


def test_a_record_builds_a_flattening_network_for_its_photos() -> None:
    preprocessing = find_entry("small_convnet").preprocessing
    record = Record("small_convnet", ("a", "b", "c"), preprocessing, head_hidden=8, dropout=0.5)
    assert build(record).eval()(torch.zeros(1, 3, 150, 150)).shape == (1, 3)


@pytest.mark.parametrize("source", ["imagenet", "file"])
@pytest.mark.parametrize(
    ("name", "options"), [("resnet50", {}), pytest.param("vgg16", {"hidden": ()}, marks=pytest.mark.slow)]
)
def test_weights_of_timm_give_its_features(
    source: str, name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """All of `--weights imagenet` but for the download (here random weights), and `--weights FILE`."""
    torch.manual_seed(0)
    theirs = timm.create_model(name)
    file = tmp_path / "weights.pth"
    torch.save(theirs.state_dict(), file)
    monkeypatch.setattr("flowers_torch.models.weights.fetch_imagenet", lambda arch: file)

    plan = plan_weights(name, "imagenet" if source == "imagenet" else str(file))
    ours = create_model(name, 5, options=plan.options | options)
    assert load_weights(ours, name, plan).endswith("head fresh")
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        expected, found = theirs.eval().forward_features(images), ours.eval().forward_features(images)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_own_file_keeps_its_lineage(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    torch.save(create_model("resnet50", 3, options={"lineage": "keras"}).state_dict(), file)
    plan = plan_weights("resnet50", str(file))
    assert plan.options == {}
    assert load_weights(create_model("resnet50", 3), "resnet50", plan).endswith("head loaded")


def test_registry_names_the_keras_networks() -> None:
    keras = {entry.keras_name for entry in REGISTRY.values()}
    assert {"ResNet50", "ResNet101V2", "ResNeXt101", "VGG16"} <= keras
