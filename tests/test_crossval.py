"""Cross-validation through the command: each photo tested once, by a run that did not train on it."""

import csv
import json
from pathlib import Path

import pytest

from flowers_torch.cli import main


@pytest.fixture(scope="module")
def finished(photo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("crossval") / "out"
    flags = ["--data", str(photo_folder), "--arch", "test_resnet", "--weights", "none", "--size", "32"]
    flags += ["--epochs", "1,1", "--device", "cpu", "--precision", "fp32", "--folds", "3", "--out", str(out)]
    assert main(["crossval", *flags]) == 0
    return out


def test_every_photo_is_tested_once(finished: Path) -> None:
    with (finished / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    files = [row["file"] for row in rows]
    assert len(files) == len(set(files)) == 60
    for fold in range(3):
        split = json.loads((finished / f"seed0-fold{fold}" / "split.json").read_text())["parts"]
        assert sorted(split["test"]) == sorted(row["file"] for row in rows if row["fold"] == str(fold))
        assert not set(split["test"]) & (set(split["train"]) | set(split["val"]))


def test_the_summary(finished: Path) -> None:
    summary = json.loads((finished / "crossval.json").read_text())
    accuracies = [run["accuracy"] for run in summary["runs"]]
    assert summary["n"] == 3 and summary["mean"] == pytest.approx(sum(accuracies) / 3)
    assert summary["photos"] == 60 and summary["std"] >= 0


@pytest.mark.parametrize("flags", [["--folds", "2"], ["--repeats", "0"], ["--dry-run"]])
def test_mistakes(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["crossval", *flags]) == 2
    assert flags[0] in capsys.readouterr().err
