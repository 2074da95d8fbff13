"""The run folder: one run at a time, the files of a killed one, and which folder is the latest."""

import os
import time
from pathlib import Path

import pytest
from forked import start_python

from flowers_torch.errors import ResourceError, UsageError
from flowers_torch.log import log
from flowers_torch.runs.folder import find_run, find_run_folder, new_run_folder, run_lock
from flowers_torch.runs.recipe import _run_folder
from flowers_torch.training.distributed import SINGLE_PROCESS

HOLD = """
import sys, time
from pathlib import Path
from flowers_torch.runs.folder import run_lock
with run_lock(Path(sys.argv[1])):
    print("held")
    time.sleep(60)
"""


@pytest.mark.parametrize("name", ["garden", "GARDEN", "my-garden"])
def test_a_new_folder_is_new_on_disks_that_ignore_case(name: str, tmp_path: Path) -> None:
    """The first run of `Garden` must not write into the first one of `garden`."""
    assert new_run_folder("", name, "arch", root=tmp_path).name == f"{name}-arch-1"
    assert new_run_folder("", name.title(), "arch", root=tmp_path).name == f"{name.title()}-arch-2"


@pytest.mark.needs("signals")
def test_a_second_run_is_refused_until_the_first_is_dead(tmp_path: Path) -> None:
    run, output = tmp_path / "run", tmp_path / "output"
    run.mkdir()
    (run / "mine").write_text("kept")
    (run / ".resume.safetensors.x.tmp").write_text("half a save")
    output.touch()
    holder = start_python(HOLD, run, output=output)
    try:
        while output.read_text() != "held\n":
            assert holder.is_alive(), output.read_text()
            time.sleep(0.01)
        with pytest.raises(UsageError, match=f"in use by process {holder.pid} on "), run_lock(run):
            pass
        with pytest.raises(UsageError, match="in use"):
            new_run_folder(str(run), "d", "a", overwrite=True)
    finally:
        holder.kill()
        holder.join()
    with run_lock(run):  # the lock file is still there, its holder is not
        assert sorted(path.name for path in run.iterdir()) == [".lock", "mine"]
    assert [path.name for path in run.iterdir()] == ["mine"]  # a finished run has none


@pytest.mark.needs("links")
def test_a_lock_or_log_file_that_is_a_link_is_left_alone(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("as it was")
    for name in (".lock", "log.txt"):
        folder = tmp_path / f"run{name}"
        folder.mkdir()
        (folder / name).symlink_to(precious)
        with pytest.raises(ResourceError, match="cannot write"), _run_folder(folder, SINGLE_PROCESS):
            log.info("into the log")
    assert precious.read_text() == "as it was"


@pytest.mark.needs("links")
def test_overwriting_removes_nothing_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "model.onnx").write_text("precious")
    (tmp_path / "run" / "figures").mkdir(parents=True)
    (tmp_path / "run" / "figures" / "loss.svg").write_text("x")
    (tmp_path / "run" / "exported").symlink_to(tmp_path / "other")
    new_run_folder(str(tmp_path / "run"), "d", "a", overwrite=True)
    assert (tmp_path / "other" / "model.onnx").exists() and not (tmp_path / "run" / "figures" / "loss.svg").exists()


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="cannot write to.*--out"):
        new_run_folder(str(tmp_path / "file" / "run"), "d", "a")
    with pytest.raises(ResourceError, match="cannot write to"), run_lock(tmp_path / "none"):
        pass


def test_the_latest_run_is_the_one_last_written_to(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no run in"):
        find_run("latest", tmp_path)
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.toml").write_text("")
        os.utime(tmp_path / name / "config.toml", (1000, 1000))
    (tmp_path / "newest but no run").mkdir()
    (tmp_path / "b" / "log.txt").write_text("x")
    os.utime(tmp_path / "c" / "config.toml", (time.time() - 50, time.time() - 50))
    assert find_run("latest", tmp_path) == tmp_path / "b"


def test_a_cross_validation_is_not_a_run_to_predict_with(tmp_path: Path) -> None:
    (tmp_path / "cv" / "seed0-fold1").mkdir(parents=True)
    for name in ("crossval.json", "seed0-fold1/config.toml"):
        (tmp_path / "cv" / name).touch()
    with pytest.raises(UsageError, match=r"cv is a cross-validation.*; fix: name one of its folds.*seed0-fold1$"):
        find_run("cv", tmp_path)
    assert find_run_folder("cv", tmp_path) == tmp_path / "cv"  # which ensemble takes


def test_overwriting_removes_the_files_of_a_run_only(tmp_path: Path) -> None:
    for name in ("model.safetensors", "log.txt", "my_notes.txt"):
        (tmp_path / name).write_text("x")
    new_run_folder(str(tmp_path), "d", "a", overwrite=True)
    assert {path.name for path in tmp_path.iterdir()} == {"my_notes.txt"}


def test_runs_are_numbered(tmp_path: Path) -> None:
    names = [new_run_folder("", "my photos/é", "net", root=tmp_path).name for _ in range(3)]
    assert names == [f"my_photos_é-net-{n}" for n in (1, 2, 3)]
