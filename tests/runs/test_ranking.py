"""Networks ranked on photos: by what they see in them, without a look at the test photos."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from torch import Tensor

from flowers_torch.cli import guarded
from flowers_torch.config import Config
from flowers_torch.errors import UsageError
from flowers_torch.runs import ranking as module
from flowers_torch.runs.experiment import Run
from flowers_torch.runs.ranking import rank_models


def config(data: Path) -> Config:
    return Config(data=str(data), weights="none", size=32, batch_size=8, precision="fp32", device="cpu")


def test_networks_are_ranked_and_one_that_fails_comes_last(photo_folder: Path) -> None:
    found = rank_models(config(photo_folder), ["no_such_network", "test_resnet", "test_efficientnet"])
    assert found[-1].arch == "no_such_network" and "no_such_network" in found[-1].problem
    tried = found[:-1]
    assert {one.arch for one in tried} == {"test_resnet", "test_efficientnet"}
    assert all(0 < one.low <= one.accuracy <= one.high <= 1 for one in tried)
    assert tried[0].accuracy >= tried[1].accuracy
    assert all(one.images_per_second > 0 and one.parameters > 0 for one in tried)


def test_the_test_photos_are_not_looked_at(photo_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    tested: list[int] = []
    real = module.pooled_features

    def noted(run: Run, photos: Sequence[int]) -> Tensor | None:
        asked.extend(photos)
        tested.extend(run.split["test"])
        return real(run, photos)

    monkeypatch.setattr(module, "pooled_features", noted)
    rank_models(config(photo_folder), ["test_resnet"])
    assert len(asked) == len(set(asked)) == 50 and not set(asked) & set(tested)


def test_nothing_to_try(photo_folder: Path) -> None:
    with pytest.raises(UsageError, match="no network could be tried"):
        rank_models(config(photo_folder), ["no_such_network"])


def test_the_command(photo_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(photo_folder), "--arch", "test_resnet,nope", "--weights", "none", "--size", "32"]
    assert guarded("shortlist", arguments) == 0
    printed = capsys.readouterr().out
    assert "test_resnet" in printed and "nope" in printed and "not tried" in printed
    assert guarded("shortlist", [*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {field.name for field in dataclasses.fields(module.Candidate)} == set(found[0])
