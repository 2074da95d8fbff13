"""The cost of a run, the dry run that prints it, and the time limit."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flowers_torch.cli import main
from flowers_torch.config import Config, Stage
from flowers_torch.config_file import load_config
from flowers_torch.errors import DataError
from flowers_torch.runs import cost, recipe, stage
from flowers_torch.runs.experiment import Experiment
from flowers_torch.training.checkpoint import read_checkpoint

MakeConfig = Callable[..., Config]
SMALL_RUN = ["--arch", "test_resnet", "--weights", "none", "--size", "32", "--precision", "fp32"]
SMALL_RUN += ["--device", "cpu", "--epochs", "1,1"]


def test_a_dry_run_writes_nothing(
    photo_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--data", str(photo_folder), *SMALL_RUN, "--dry-run"]) == 0
    assert not list(tmp_path.iterdir())
    printed = capsys.readouterr().out
    for text in ("60 photos", "3 classes", "stage    head", "stage    finetune", "frozen", "minutes", "GiB"):
        assert text in printed


@pytest.mark.parametrize("augment", ["mirror", "light", "rand"])
def test_cached_features_cost_time_before_the_first_epoch(make_config: MakeConfig, augment: str) -> None:
    cached = Stage(name="head", train="head", epochs=3, cached_views=3, augment=augment)
    fitted = Stage(name="fit", train="head", optimizer="lbfgs", augment=augment)
    plain = Stage(name="plain", train="head", epochs=3, cached_views=0, augment=augment)
    experiment, model = Experiment.new(make_config(cached, fitted, plain))
    costs = [cost.stage_cost(experiment, model, one) for one in (cached, fitted, plain)]
    for found in costs[:2]:
        assert found.features_seconds > found.epoch_seconds >= 0 and found.memory_bytes > 0
    assert costs[2].features_seconds == 0 and costs[2].epoch_seconds > costs[0].epoch_seconds


def test_the_time_limit_takes_epochs_off_and_leaves_a_usable_model(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(minutes=0.05)
    config.stages[1].epochs = 100_000
    result = recipe.train(config, tmp_path / "run")
    planned = load_config(file=str(result.folder / "config.toml")).stages[1].epochs
    assert planned < 100_000 and len(result.history) <= 2 + planned
    assert (result.folder / "model.safetensors").is_file() and not math.isnan(result.test.loss)


def test_a_time_limit_of_nothing_still_ends_with_a_test(make_config: MakeConfig, tmp_path: Path) -> None:
    result = recipe.train(make_config(minutes=1e-6), tmp_path / "run")
    assert len(result.history) == 1 and result.test.images > 0


def test_a_resumed_run_keeps_its_time_limit(
    photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> Any:
        raise DataError("an image is gone", "restore it")
        yield

    real, limits = recipe.stop_request, []
    monkeypatch.setattr(recipe, "stop_request", lambda *arguments: (limits.append(arguments[0]), real(*arguments))[1])
    flags = ["train", "--data", str(photo_folder), *SMALL_RUN, "--time", "10m"]
    with monkeypatch.context() as patch:
        patch.setattr(stage, "train_epoch", fail)
        assert main([*flags, "--out", str(tmp_path / "run")]) == 3
    saved = read_checkpoint(tmp_path / "run" / "resume.safetensors").state
    assert saved.closing_seconds > 0
    assert main(["train", "--resume", str(tmp_path / "run")]) == 0
    assert limits[1] < 600 - saved.closing_seconds - saved.elapsed < limits[0]
