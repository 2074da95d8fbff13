"""The table of runs: newest first, with cross-validations, unfinished runs and damaged files."""

import json
import os
from pathlib import Path

import pytest

from flowers_torch.errors import UsageError
from flowers_torch.runs.listing import list_runs


def write_run(folder: Path, config: str, time: int, **files: object) -> None:
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(config)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    for file in folder.iterdir():
        os.utime(file, (time, time))


def test_runs_are_listed_newest_first(tmp_path: Path) -> None:
    config = 'arch = "resnet50"\ndata = "/photos/garden"\n'
    test = {"accuracy": 0.9, "interval_95": [0.8, 0.95]}
    write_run(tmp_path / "old", config, 1000, metrics={"test": test})
    write_run(tmp_path / "new", config, 3000)
    write_run(tmp_path / "folds", config, 2000, crossval={"mean": 0.7, "finished": False})
    write_run(tmp_path / "damaged", "arch = ", 500, metrics=3)
    (tmp_path / "no run").mkdir()
    new, folds, old, damaged = list_runs(tmp_path)
    assert [run.name for run in (new, folds, old)] == ["new", "folds", "old"]
    assert (old.data, old.arch, old.accuracy, old.interval_95) == ("garden", "resnet50", 0.9, (0.8, 0.95))
    assert old.finished and not new.finished and new.accuracy is None
    assert (folds.accuracy, folds.interval_95, folds.finished) == (0.7, None, False)
    assert (damaged.name, damaged.arch, damaged.finished) == ("damaged", "", False)


@pytest.mark.needs("links")
def test_values_of_other_kinds_are_left_empty(tmp_path: Path) -> None:
    hostile = [{"accuracy": "\x1b[2J"}, {"accuracy": 1e300}, {"accuracy": 0.5, "interval_95": [1]}, [], "x", None]
    for number, test in enumerate(hostile):
        write_run(tmp_path / f"{number}", 'arch = [1]\ndata = "x"\n', 1000 + number, metrics={"test": test})
    (tmp_path / "5" / "dangling").symlink_to(tmp_path / "none")
    write_run(tmp_path / "6", "arch = 0x" + "f" * 5000, 3000, crossval={"mean": [], "finished": 1})
    runs = list_runs(tmp_path)
    assert len(runs) == 7 and all(not run.arch and run.interval_95 is None for run in runs)
    assert [run.accuracy for run in runs if run.accuracy is not None] == [0.5]


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no folder"):
        list_runs(tmp_path / "runs")
