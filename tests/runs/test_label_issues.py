"""Label issues of one run and of several runs of the same photos."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from flowers_torch.cli import main
from flowers_torch.config import Config, Stage
from flowers_torch.errors import UsageError
from flowers_torch.evaluation.label_issues import find_label_issues
from flowers_torch.evaluation.out_of_fold import average_probabilities, out_of_fold_probabilities
from flowers_torch.runs import recipe
from flowers_torch.runs.experiment import Experiment
from flowers_torch.runs.label_issues import features_of_runs, find_run_label_issues

WRONG = ("red/wrong.png", "red/wrong copy.png")


@pytest.fixture(scope="module")
def runs(
    make_config: Callable[..., Config], photo_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Two runs with other networks and splits, one of other photos. A photo and its copy have a wrong label."""
    root = tmp_path_factory.mktemp("label issues")
    photos = Path(shutil.copytree(photo_folder, root / "photos"))
    noise = np.random.default_rng(1).normal(0, 25, (40, 48, 3))
    blue = Image.fromarray(np.clip(np.array((60, 70, 180)) + noise, 0, 255).astype(np.uint8))
    for name in WRONG:
        blue.save(photos / name)
    stage = Stage(epochs=1, train="head", lr=0.01, cached_views=0)
    for name, changes in (("a", {}), ("b", {"seed": 1}), ("other", {"data": str(photo_folder)})):
        recipe.train(make_config(stage, **({"data": str(photos)} | changes)), root / name)
    return {name: root / name for name in ("a", "b", "other")}


def test_the_probabilities_of_the_runs_are_averaged(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy of the wrong photo vouches for it only if both are in one group."""
    monkeypatch.setattr("flowers_torch.evaluation.out_of_fold.FRACTIONS", (0.5, 1.0))
    monkeypatch.setattr("flowers_torch.evaluation.out_of_fold.SUBSETS", 2)
    experiment = Experiment.open(Path(shutil.copytree(runs["a"], tmp_path / "a")))[0]
    dataset, labels = experiment.dataset, torch.tensor(experiment.dataset.labels)
    networks = features_of_runs(experiment, [runs["b"]])
    assert len(networks) == 2 and not torch.allclose(*networks)
    first, second = (dataset.paths.index(name) for name in WRONG)
    groups = list(range(len(dataset)))
    groups[second] = first
    each = [out_of_fold_probabilities(features, labels, 3, groups)[0] for features in networks]
    expected = find_label_issues(average_probabilities(each, labels), labels, groups)
    found = find_run_label_issues(experiment, networks)
    assert json.loads((experiment.folder / "label_issues.json").read_text()) == found
    assert {issue["file"] for issue in found["label_issues"]} >= set(WRONG)
    assert [(issue["file"], issue["probability"]) for issue in found["label_issues"]] == [
        (dataset.paths[issue.index], issue.suggested_probability) for issue in expected
    ]
    assert find_label_issues(each[0], labels, groups) != expected


def test_a_run_of_other_photos_is_refused(runs: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["label-issues", str(runs["a"]), str(runs["b"]), str(runs["other"])]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"{runs['other']} has other photos than {runs['a']}; fix: name runs of the same --data" in line


@pytest.mark.parametrize("kind", ["classes", "photos", "labels"])
def test_runs_that_differ_are_refused(kind: str, runs: dict[str, Path], tmp_path: Path) -> None:
    """By the names of the classes, by the content of a photo with the same name, and by a label."""
    folder = Path(shutil.copytree(runs["a"], tmp_path / "a"))
    experiment = Experiment.open(folder)[0]
    changes: dict[str, Any] = {"classes": {"classes": ("blue", "green", "rose")}, "labels": {"labels": (1,) * 62}}
    dataset = dataclasses.replace(experiment.dataset, **changes.get(kind, {}))
    filtered = dataclasses.replace(experiment.filtered, dataset=dataset)
    if kind == "photos":
        split = json.loads((folder / "split.json").read_text())
        split["splits"]["train"][next(iter(split["splits"]["train"]))] = "0" * 16
        (folder / "split.json").write_text(json.dumps(split))
    with pytest.raises(UsageError, match=f"b has other {kind} than .*; fix: "):
        features_of_runs(dataclasses.replace(experiment, filtered=filtered), [runs["b"]])
