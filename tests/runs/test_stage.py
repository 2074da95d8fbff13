"""A stage: which epoch keeps its weights, when it ends early, and how many views it caches."""

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from flowers_torch.cli import main
from flowers_torch.config import Config, Stage
from flowers_torch.config_file import to_toml
from flowers_torch.files.tensors import safe_load
from flowers_torch.runs import recipe, stage

MakeConfig = Callable[..., Config]


def test_a_stage_ends_early_with_its_best_weights(
    make_config: MakeConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where it is the last one and its best epoch was never saved by the clock."""
    hopeless = Stage(name="head", train="head", epochs=9, lr=300.0, schedule="constant", patience=2, cached_views=0)
    with caplog.at_level("INFO", logger="flowers_torch"):
        result = recipe.train(make_config(hopeless), tmp_path / "run")
    losses = [row["val_calibrated_loss"] for row in result.history]
    assert len(losses) < 9 and min(losses[-2:]) >= min(losses[:-2])
    assert "head ends early: 2 epochs without" in caplog.text
    until_best = dataclasses.replace(hopeless, epochs=losses.index(min(losses)) + 1)
    expected = recipe.train(make_config(until_best), tmp_path / "until best")
    ours, theirs = (safe_load(run.folder / "model.safetensors")[0] for run in (result, expected))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_one_loss_chooses_weights_ends_stages_and_advises(
    photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Here the plain loss rises from epoch to epoch while the calibrated one falls."""
    real, count = stage.history_row, itertools.count(1)

    def row(*arguments: Any) -> dict[str, Any]:
        number = next(count)
        losses = {"val_loss": float(number), "val_calibrated_loss": 1 / number}
        return real(*arguments) | losses | {"val_accuracy": 0.9, "train_accuracy": 0.9}

    monkeypatch.setattr(stage, "history_row", row)
    flags = ["--arch", "test_resnet", "--weights", "none", "--size", "32", "--precision", "fp32"]
    flags += ["--device", "cpu", "--data", str(photo_folder), "--epochs", "1,3"]
    flags += ["--set", "stages.finetune.patience=1", "--out", str(tmp_path / "run")]
    assert main(["train", *flags]) == 0
    printed = capsys.readouterr().out
    assert next(count) == 5 and "ends early" not in printed
    assert "made it worse" not in printed
    assert "the calibrated validation loss was still falling in the last epoch (by 25%)" in printed
    report = (tmp_path / "run" / "report.html").read_text()
    assert "made it worse" not in report and "still falling" in report


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 2),
        ({"epochs": 1}, 1),
        ({"epochs": 1, "optimizer": "lbfgs"}, 2),
        ({"train": "all"}, 0),
        ({"train": "layer2", "cached_views": 4}, 0),
        ({"cached_views": 0}, 0),
        ({"cached_views": 4}, 4),
        ({"mixup": 0.2}, 0),
        ({"batch_norm": "all"}, 0),
    ],
)
def test_cached_views(changes: dict[str, Any], expected: int) -> None:
    stage = Stage(**({"train": "head", "epochs": 9} | changes))
    assert stage.views_to_cache(1000) == expected
    assert stage.views_to_cache(1_000_000) == (expected if "cached_views" in changes else min(expected, 1))


def test_lr_find_draws_and_suggests(
    make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.toml").write_text(to_toml(make_config(), "for a test"))
    arguments = ["--config", str(tmp_path / "c.toml"), "--steps", "40", "--plot", str(tmp_path / "sweep.svg")]
    assert main(["lr-find", *arguments, "--stage", "head"]) == 0
    printed = capsys.readouterr().out
    assert "rate     " in printed and "--set stages.head.lr=" in printed
    assert "<polyline" in (tmp_path / "sweep.svg").read_text()
    assert main(["lr-find", *arguments, "--stage", "1"]) == 2
