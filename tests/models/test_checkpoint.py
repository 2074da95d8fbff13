"""A trained classifier as one file."""

import dataclasses
from pathlib import Path

import pytest
import torch

from flowers_torch.data.preprocessing import Preprocessing
from flowers_torch.errors import ModelFileError
from flowers_torch.files.tensors import safe_load, safe_save
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
