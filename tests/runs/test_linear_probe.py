"""A stage that fits the head in closed form: its results, its options, and what it prints."""

import csv
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flowers_torch.cli import main
from flowers_torch.config import Config, Stage
from flowers_torch.config_file import load_config
from flowers_torch.errors import StoppedError, UsageError
from flowers_torch.runs import recipe
from flowers_torch.runs.feature_cache import FeatureCache

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
