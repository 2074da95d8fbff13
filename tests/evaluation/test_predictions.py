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
    found = collect(model, batches, FP32)
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
