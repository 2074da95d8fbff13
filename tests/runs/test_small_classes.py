"""Classes that are too small to split are refused by name, and left out by name."""

import shutil
from pathlib import Path

import pytest

from flowers_torch.cli import main
from flowers_torch.config import Config
from flowers_torch.data.quality.exclude import drop_images
from flowers_torch.data.sources.flowers17 import whole_set
from flowers_torch.data.splits.split_file import read_split
from flowers_torch.errors import DataError
from flowers_torch.models.checkpoint import load_classifier
from flowers_torch.runs.dataset import choose_splits, open_images

FLAGS = "--arch test_resnet --weights none --size 32 --epochs 1,1 --device cpu --precision fp32".split()


def test_small_classes_are_refused_and_left_out_by_name(
    photo_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = shutil.copytree(photo_folder, tmp_path / "photos")
    for name, count in (("it's, rare", 2), ("once", 1)):
        (photos / name).mkdir()
        for number in range(count):
            shutil.copy(photos / "red" / f"{number}.png", photos / name)
    words = ["train", "--data", str(photos), "--groups", "none", "--out", str(tmp_path / "run"), *FLAGS]
    assert main(words) == 3
    fix = """or leave them out with --exclude 'class:it'"'"'s, rare,class:once'"""
    assert fix in capsys.readouterr().err and not (tmp_path / "run").exists()
    assert main([*words, "--exclude", "class:it's, rare,class:once"]) == 0
    text = capsys.readouterr().out
    assert "note     classes that are left out, with all their photos: it's, rare (2), once\n" in text
    assert "of 3 classes: " in text and "(asked: " in text
    assert load_classifier(tmp_path / "run")[1].classes == ("blue", "green", "red")
    assert main(["evaluate", str(tmp_path / "run")]) == 0

    update = ["update", str(tmp_path / "run"), str(tmp_path / "new"), "--out", str(tmp_path / "more")]
    for name, count in (("red", 1), ("once", 2)):
        (tmp_path / "new" / name).mkdir(parents=True)
        for number in range(count):
            shutil.copy(photos / "red" / f"{number}.png", tmp_path / "new" / name / f"new{number}.png")
            with (tmp_path / "new" / name / f"new{number}.png").open("ab") as file:
                file.write(name.encode())  # a photo of its own
    capsys.readouterr()
    assert main([*update, "--exclude", "class:once"]) == 0
    assert "note     classes that are left out, with all their photos: once (2)\n" in capsys.readouterr().out
    assert read_split(tmp_path / "more" / "split.json")["classes"] == ["blue", "green", "red"]


def test_a_single_class_is_not_enough(photo_folder: Path) -> None:
    config = Config(data=str(photo_folder), exclude="class:red,class:blue")
    with pytest.raises(DataError, match="--exclude class:red,class:blue leaves too few classes"):
        open_images(config)


def test_a_class_that_is_left_out_moves_no_photo_of_flowers17() -> None:
    whole = whole_set(Path("nowhere"))
    fewer = drop_images(whole, {"class:tulip": ""})
    for split in ("tutorial", "50/25/25"):
        config = Config(split=split)
        one, other = choose_splits(whole, config), choose_splits(fewer, config)
        for name, members in one.items():
            kept = {whole.paths[i] for i in members if whole.classes[whole.labels[i]] != "tulip"}
            assert {fewer.paths[i] for i in other[name]} == kept
