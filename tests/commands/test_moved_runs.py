"""A run opens in any working directory, on any machine, and after its photos have moved."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flowers_torch.cli import main
from flowers_torch.config_file import load_config
from flowers_torch.runs.experiment import Experiment

FLAGS = "--arch test_resnet --weights none --size 32 --epochs 1,1 --device cpu --precision fp32 --quiet".split()


@pytest.fixture(scope="module")
def place(photo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs `a` and `b` in `runs/` that were started with relative paths."""
    place = tmp_path_factory.mktemp("place")
    shutil.copytree(photo_folder, place / "photos")
    (place / "exclude.csv").write_text("file,reason\nred/0.png,blurred\n")
    photos = [path.relative_to(place / "photos") for path in (place / "photos").rglob("*.png")]
    groups = [f"{path},{path}" for path in photos if path.as_posix() != "red/0.png"]
    (place / "groups.csv").write_text("\n".join(["file,group", *groups]) + "\n")
    files = ["--exclude", f"../{place.name}/exclude.csv", "--groups", "groups.csv"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert main(["train", "--data", "photos", *files, *FLAGS, "--out", "runs/a"]) == 0
        assert main(["train", "--from", "runs/a", *FLAGS[4:], "--out", "runs/b"]) == 0
        assert main(["crossval", "--data", "photos", "--folds", "3", *FLAGS, "--out", "runs/cv"]) == 0
    return place


def test_paths_are_absolute_and_names_stay(place: Path) -> None:
    first, second = (load_config(file=str(place / "runs" / name / "config.toml")) for name in "ab")
    assert first.data == second.data == str(place / "photos")
    assert (first.exclude, first.groups) == (str(place / "exclude.csv"), str(place / "groups.csv"))
    assert first.weights == "none" and second.weights == str(place / "runs/a/model.safetensors")


def commands(runs: Path, data: list[str]) -> list[list[str]]:
    """Every command that opens the photos of a run."""
    a, b = str(runs / "a"), str(runs / "b")
    return [
        ["evaluate", a, *data],
        ["evaluate", a, "--save", *data],
        ["label-issues", a, *data],
        ["report", a, *data],
        ["ensemble", a, b, *data],
    ]


def interrupted(place: Path, to: Path) -> Path:
    """A copy of the cross-validation without the test of its last fold."""
    shutil.copytree(place / "runs" / "cv", to)
    (to / "seed0-fold2" / "metrics.json").unlink()
    return to


def test_runs_open_in_any_working_directory(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for command in commands(place / "runs", []):
        assert main(command) == 0, command
    assert main(["crossval", "--resume", str(interrupted(place, tmp_path / "cv"))]) == 0
    assert capsys.readouterr().err.count("error") == 0


def test_photos_that_have_moved(
    place: Path, new_photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line asks for them, and --data gives their folder."""
    now = ["--data", str(place / "moved")]
    (place / "photos").rename(place / "moved")
    crossval = ["crossval", "--resume", str(interrupted(place, tmp_path / "cv"))]
    update = ["update", str(place / "runs" / "a"), str(new_photos), "--out", str(tmp_path / "run")]
    try:
        for command in [*commands(place / "runs", []), crossval, update]:
            assert main(command) == 3, command
            error = capsys.readouterr().err
            assert error.count("\n") == 1 and "are not at" in error and "with --data" in error
        for command in [*commands(place / "runs", now), [*crossval, *now]]:
            assert main(command) == 0, command
        assert main([*update, *now]) == 0
    finally:
        (place / "moved").rename(place / "photos")


def test_changed_photos_are_an_error(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(place / "photos", tmp_path / "photos")
    edited = tmp_path / "photos" / "red" / "5.png"
    edited.write_bytes(edited.read_bytes() + b"x")
    assert main(["evaluate", str(place / "runs" / "a"), "--data", str(tmp_path / "photos")]) == 3
    assert "1 edited" in capsys.readouterr().err


@pytest.fixture
def new_photos(tmp_path: Path) -> Path:
    """A new class."""
    folder = tmp_path / "new" / "violet"
    folder.mkdir(parents=True)
    for number in range(6):
        pixels = np.random.default_rng(number).integers(60, 255, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder.parent


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine that does not compute fp16")
def test_a_run_of_another_machine_opens(place: Path, new_photos: Path, tmp_path: Path) -> None:
    """A run in fp16 on a second GPU opens on the CPU."""
    runs = tmp_path / "runs"
    shutil.copytree(place / "runs", runs)
    for name in "ab":
        file = runs / name / "config.toml"
        text = file.read_text().replace('precision = "fp32"', 'precision = "fp16"')
        text = text.replace('device = "cpu"', 'device = "cuda:1"').replace("threads = 0", "threads = 3")
        file.write_text(text)
    experiment, _ = Experiment.open(runs / "a")
    assert (experiment.runtime.device.type, experiment.runtime.precision) == ("cpu", "fp32")
    assert torch.get_num_threads() != 3
    update = ["update", str(runs / "a"), str(new_photos), "--out", str(tmp_path / "updated")]
    for command in [*commands(runs, []), update]:
        assert main(command) == 0, command
