"""A stage that fits the head in closed form: its results, its options, and what it prints."""

import csv
import dataclasses
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from flowers_torch.cli import main
from flowers_torch.config import Config, Stage
from flowers_torch.config_file import load_config
from flowers_torch.deploy.predictor import Predictor
from flowers_torch.errors import StoppedError, UsageError
from flowers_torch.evaluation.predictions import load_predictions
from flowers_torch.models.checkpoint import load_classifier
from flowers_torch.runs import linear_probe, recipe
from flowers_torch.runs.experiment import Experiment
from flowers_torch.runs.feature_cache import FeatureCache
from flowers_torch.training.device import Runtime

MakeConfig = Callable[..., Config]
FIT = Stage(name="head", train="head", optimizer="lbfgs", cached_views=2, augment="mirror")


def test_a_linear_head_is_fitted_and_the_next_stage_continues_from_it(make_config: MakeConfig, tmp_path: Path) -> None:
    tune = Stage(name="tune", train="head", epochs=1, lr=1e-9, augment="none", cached_views=0)
    result = recipe.train(make_config(FIT, tune), tmp_path / "run")
    head_row, tune_row = result.history
    assert head_row["train_accuracy"] > 0.9
    assert tune_row["train_loss"] == pytest.approx(head_row["train_loss"], abs=0.02)
    alone = recipe.train(make_config(FIT), tmp_path / "alone")
    assert alone.test.accuracy >= 0.8


@pytest.mark.parametrize("before", [0, 1], ids=["first stage", "second stage"])
def test_a_signal_while_features_are_computed_stops_the_fit(
    before: int, make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, assert_same: Any
) -> None:
    """In the first stage there is nothing to save yet; behind another one the run can be resumed."""
    monkeypatch.setenv("FLOWERS_TORCH_CACHE", str(tmp_path / "cache"))
    tune = Stage(name="tune", train="all", epochs=1, lr=0.01)
    config = make_config(*([tune] if before else []), FIT)
    real = FeatureCache._run_backbone

    def compute(*arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        yield from real(*arguments)

    with monkeypatch.context() as patch, pytest.raises(StoppedError, match="stopped by SIGTERM") as caught:
        patch.setattr(FeatureCache, "_run_backbone", compute)
        recipe.train(config, tmp_path / "run")
    assert ("--resume" in str(caught.value)) == bool(before) and caught.value.exit_code == 143
    if before:
        assert_same(recipe.resume(tmp_path / "run"), recipe.train(config, tmp_path / "whole"))


def test_features_beyond_the_memory_are_an_error(make_config: MakeConfig, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="lbfgs needs cached features.*fix: raise cache_gib"):
        recipe.train(make_config(FIT, cache_gib=0.0), tmp_path / "run")


@pytest.mark.parametrize("changes", [{"head_hidden": 8}, {"dropout": 0.1}, {"head_norm": True}])
def test_lbfgs_is_for_linear_heads(changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="lbfgs needs train = head"):
        load_config(overrides={"stages.head.optimizer": "lbfgs", "stages.head.train": "head", **changes})


def test_a_fitted_stage_shows_no_learning_rate(
    photo_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--data", str(photo_folder), "--arch", "test_resnet", "--weights", "none", "--size", "32"]
    arguments += ["--precision", "fp32", "--device", "cpu", "--set", "stages.head.optimizer=lbfgs"]
    arguments += ["--set", "stages.head.augment=mirror", "--epochs", "1,1"]
    assert main(["lr-find", *arguments, "--stage", "head"]) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert "stage head is fitted by L-BFGS, which has no learning rate; fix: use --stage finetune" in printed
    assert main(["lr-find", *arguments[:-2], "--head-only"]) == 2
    assert "fix: set stages.head.optimizer=adamw" in capsys.readouterr().err

    assert main(["train", *arguments, "--dry-run"]) == 0
    head_lines, finetune_lines = capsys.readouterr().out.split("stage    head")[1].split("stage    finetune")
    assert " lr" not in head_lines and "L-BFGS" in head_lines and " lr" in finetune_lines

    assert main(["train", *arguments, "--out", str(tmp_path / "run")]) == 0
    head_lines, finetune_lines = capsys.readouterr().out.split("stage    1")[1].split("stage    2")
    assert " lr" not in head_lines and " lr" in finetune_lines
    with (tmp_path / "run" / "history.csv").open() as file:
        rates = [row["lr"] for row in csv.DictReader(file)]
    assert rates[0] == "" and float(rates[1]) >= 0
    assert "\nlr = " not in (tmp_path / "run" / "config.toml").read_text().split('name = "finetune"')[0]
    head_table = (tmp_path / "run" / "report.html").read_text().split("<h3>Stage head")[1].split("<h3>")[0]
    assert "L-BFGS" in head_table and " lr" not in head_table


def test_head_only_from_the_command_line(photo_folder: Path, tmp_path: Path) -> None:
    arguments = ["--data", str(photo_folder), "--arch", "test_resnet", "--weights", "none", "--size", "32"]
    arguments += ["--out", str(tmp_path / "run"), "--precision", "fp32", "--head-only"]
    assert main(["train", *arguments]) == 0
    config = load_config(file=str(tmp_path / "run" / "config.toml"))
    assert [stage.optimizer for stage in config.stages] == ["lbfgs"] and config.head_hidden == 0


VIT: dict[str, Any] = {"arch": "test_vit", "size": 32}


@pytest.fixture
def last4_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes every other feature set of `test_vit`, which has 64 features, useless."""
    real = linear_probe.fit_linear_probe

    def fit(train: Any, validation: Any, *arguments: Any) -> Any:
        if train[0].shape[1] != 5 * 64:
            train, validation = ((features * 0, labels) for features, labels in (train, validation))
        return real(train, validation, *arguments)

    monkeypatch.setattr(linear_probe, "fit_linear_probe", fit)


@pytest.mark.usefixtures("last4_wins")
def test_the_set_of_the_lowest_validation_loss_is_stored_and_used(
    make_config: MakeConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """By the test, by prediction, by evaluation, and by a run that starts from the file."""
    with caplog.at_level("INFO", logger="flowers_torch"):
        result = recipe.train(make_config(FIT, **VIT), tmp_path / "run")
    assert caplog.text.count("features last4: validation loss ") == 1 and "; own " in caplog.text
    model, info = load_classifier(result.folder)
    assert info.features == "last4" and model.get_submodule("head").weight.shape == (3, 5 * 64)
    experiment, _ = Experiment.open(result.folder)
    split, stored = experiment.splits["test"], load_predictions(result.folder)
    files = [experiment.dataset.root / experiment.dataset.paths[index] for index in split]
    logits = Predictor.load(result.folder, Runtime(torch.device("cpu"), "fp32", "for a test")).logits(files)
    torch.testing.assert_close(logits, stored.logits["test"], rtol=1e-3, atol=1e-3)
    assert main(["evaluate", str(result.folder), "--out", str(tmp_path / "again")]) == 0
    again = json.loads((tmp_path / "again" / "metrics.json").read_text())
    assert again["correct"] == result.test.correct
    tune = Stage(name="tune", train="head", epochs=1, lr=1e-9, augment="none", cached_views=2)
    further = make_config(tune, **VIT | {"weights": str(result.folder / "model.safetensors")})
    row = recipe.train(further, tmp_path / "further").history[0]
    assert row["val_loss"] == pytest.approx(result.history[0]["val_loss"], rel=1e-3)
    assert load_classifier(tmp_path / "further")[1].features == "last4"


@pytest.mark.usefixtures("last4_wins")
def test_features_of_all_sets_have_a_fraction_of_the_memory(
    make_config: MakeConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Beyond it the network keeps its own, in `rank` too."""
    config = make_config(FIT, cache_gib=1e-4, **VIT)
    with caplog.at_level("INFO", logger="flowers_torch"):
        result = recipe.train(config, tmp_path / "run")
    assert "features exceed cache_gib" in caplog.text and load_classifier(result.folder)[1].features == ""
    experiment, model = Experiment.new(config)
    (features,) = experiment.features.sets_of_frozen(model, experiment.splits["train"]).values()
    assert features.shape[1] == 64


@pytest.mark.usefixtures("last4_wins")
def test_a_run_resumes_with_the_set_that_its_fit_chose(
    make_config: MakeConfig, tmp_path: Path, signal_in_step: Any, assert_same: Any
) -> None:
    """A later fit keeps it."""
    tune = Stage(name="tune", train="all", epochs=1, lr=1e-3)
    config = make_config(FIT, tune, dataclasses.replace(FIT, name="again"), **VIT)
    whole = recipe.train(config, tmp_path / "whole")
    signal_in_step(signal.SIGTERM, 2)
    with pytest.raises(StoppedError):
        recipe.train(config, tmp_path / "run")
    assert_same(recipe.resume(tmp_path / "run"), whole)
    assert load_classifier(tmp_path / "run")[1].features == "last4"
