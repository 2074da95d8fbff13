"""Model ranking: by a linear head on frozen features, without the test images."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowers_torch.cli import main
from flowers_torch.config import Config
from flowers_torch.errors import UsageError
from flowers_torch.models.recommended import Backbone
from flowers_torch.runs import ranking as module
from flowers_torch.runs.experiment import Experiment
from flowers_torch.runs.feature_cache import FeatureCache
from flowers_torch.runs.ranking import rank_models


def config(data: Path) -> Config:
    return Config(data=str(data), weights="none", size=32, batch_size=8, precision="fp32", device="cpu")


def untrained(*archs: str) -> list[Backbone]:
    return [Backbone(arch, "none", size=32) for arch in archs]


def test_networks_are_ranked_and_one_that_fails_comes_last(photo_folder: Path) -> None:
    found = rank_models(config(photo_folder), untrained("no_such_network", "test_resnet", "test_efficientnet"))
    assert found[-1].arch == "no_such_network" and "no_such_network" in found[-1].problem
    tried = found[:-1]
    assert {one.arch for one in tried} == {"test_resnet", "test_efficientnet"}
    assert all(0 < one.low <= one.accuracy <= one.high <= 1 for one in tried)
    assert tried[0].accuracy >= tried[1].accuracy
    assert all(one.images_per_second > 0 and one.parameters > 0 for one in tried)


def test_the_test_images_are_not_used(photo_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[int] = []
    real = FeatureCache.sets_of_frozen

    def sets_of_frozen(self: FeatureCache, model: nn.Module, indices: Sequence[int]) -> dict[str, Tensor]:
        used.extend(indices)
        return real(self, model, indices)

    monkeypatch.setattr(FeatureCache, "sets_of_frozen", sets_of_frozen)
    rank_models(config(photo_folder), untrained("test_resnet"))
    test = Experiment.new(dataclasses.replace(config(photo_folder), arch="test_resnet"))[0].splits["test"]
    assert len(used) == len(set(used)) == 48 and not set(used) & set(test)


def test_the_set_with_the_lowest_loss_is_ranked(
    photo_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = module.out_of_fold_probabilities

    def only_last4(features: Tensor, *arguments: Any) -> Any:
        return real(features if features.shape[1] == 5 * 64 else torch.zeros_like(features), *arguments)

    monkeypatch.setattr(module, "out_of_fold_probabilities", only_last4)
    with caplog.at_level("INFO", logger="flowers_torch"):
        (found,) = rank_models(config(photo_folder), untrained("test_vit"))
    assert found.features == "last4"
    assert "features last4: cross-validated loss" in caplog.text and "; own 1." in caplog.text


def test_no_network_could_be_tried(photo_folder: Path) -> None:
    with pytest.raises(UsageError, match="no network could be tried"):
        rank_models(config(photo_folder), untrained("no_such_network"))


def test_the_rank_command(photo_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(photo_folder), "--arch", "test_resnet,nope", "--weights", "none", "--size", "32"]
    assert main(["rank", *arguments]) == 0
    printed = capsys.readouterr().out
    assert "test_resnet" in printed and "nope" in printed and "not tried" in printed
    assert main(["rank", *arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {field.name for field in dataclasses.fields(module.Candidate)} == set(found[0])
