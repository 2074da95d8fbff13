"""Predictions: features, and the file of a run."""

from pathlib import Path

import pytest
import torch
from torch import nn

from flowers_torch.errors import DataError, ModelFileError
from flowers_torch.evaluation.predictions import (
    PREDICTIONS_FILE,
    Predictions,
    collect,
    load_predictions,
    save_predictions,
)
from flowers_torch.files.tensors import safe_save
from flowers_torch.models.factory import create_model
from flowers_torch.models.heads import set_head
from flowers_torch.training.device import Runtime

FP32 = Runtime(torch.device("cpu"), "fp32", "for a test")


@pytest.mark.parametrize(("arch", "size", "hidden"), [("test_resnet", 32, 0), ("lenet5_relu", 32, 8)])
def test_features_are_the_input_of_the_classifier(arch: str, size: int, hidden: int) -> None:
    torch.manual_seed(0)
    model = create_model(arch, 3, size=size)
    set_head(model, 3, hidden)
    images = torch.randn(5, 3, size, size)
    batches = [(images[:2], torch.tensor([0, 1])), (images[2:], torch.tensor([2, 0, 1]))]
    found, without = (collect(model, batches, FP32, with_features=wanted) for wanted in (True, False))
    assert torch.equal(without.logits, found.logits) and without.features.shape == (5, 0)
    assert found.labels.tolist() == [0, 1, 2, 0, 1]
    classifier: nn.Module = model.get_classifier()  # type: ignore[operator]
    with torch.no_grad():
        assert torch.allclose(classifier(found.features), found.logits, atol=1e-5)
    assert not classifier._forward_pre_hooks


def test_predictions_survive_the_file(tmp_path: Path) -> None:
    val = Predictions(torch.randn(3, 2), torch.tensor([0, 1, 1]), torch.empty(3, 0))
    test = Predictions(torch.randn(2, 2), torch.tensor([1, 0]), torch.empty(2, 0))
    names = ["b\udcff.jpg", "c é.jpg"]  # not valid UTF-8
    save_predictions(tmp_path, ("x", "y"), 2.0, {"val": (["a", "b", "c"], val), "test": (names, test)})
    found = load_predictions(tmp_path)
    assert found.classes == ("x", "y") and found.paths["test"] == tuple(names)
    assert torch.equal(found.logits["val"], val.logits) and torch.equal(found.labels["test"], test.labels)
    assert torch.equal(found.calibrated("test"), test.logits / 2)


def test_missing_or_damaged(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no predictions.safetensors; fix: "):
        load_predictions(tmp_path)
    val = Predictions(torch.randn(1, 2), torch.tensor([0]), torch.empty(1, 0))
    save_predictions(tmp_path, ("x", "y"), 1.0, {"val": (["a"], val)})
    path = tmp_path / PREDICTIONS_FILE
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match="checksum"):
        load_predictions(tmp_path)


@pytest.mark.parametrize(
    ("metadata", "tensors", "reason"),
    [
        ({"classes": None}, {}, "classes"),
        ({"classes": ["x", "x"]}, {}, "class"),
        ({"temperature": 0}, {}, "temperature"),
        ({"temperature": "1"}, {}, "temperature"),
        ({"paths": {"val": "a"}}, {}, "paths"),
        ({"paths": ["val"]}, {}, "paths"),
        ({"paths": {"val": ["a", "b"]}}, {}, "do not fit its photos"),
        ({}, {"val/logits": torch.zeros(1, 3)}, "do not fit its photos"),
        ({}, {"val/logits": torch.zeros(1, 2, dtype=torch.int64)}, "do not fit its photos"),
        ({}, {"val/labels": torch.tensor([2])}, "do not fit its photos"),
        ({}, {"val/labels": torch.tensor([0.0])}, "do not fit its photos"),
        ({}, {"test/projection": torch.zeros(3)}, "projection"),
    ],
)
def test_hostile_predictions(
    tmp_path: Path, metadata: dict[str, object], tensors: dict[str, torch.Tensor], reason: str
) -> None:
    whole = {"val/logits": torch.zeros(1, 2), "val/labels": torch.tensor([0])}
    values = {"classes": ["x", "y"], "temperature": 1.0, "paths": {"val": ["a"]}}
    safe_save(whole | tensors, tmp_path / PREDICTIONS_FILE, values | metadata)
    with pytest.raises(DataError, match=f"is not a valid predictions file: .*{reason}"):
        load_predictions(tmp_path)
