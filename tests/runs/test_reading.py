"""A run reads its photos as --classes and --groups say, in every command that opens it."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from flowers_torch.cli import main
from flowers_torch.config_file import load_config
from flowers_torch.data.splits.split_file import read_split
from flowers_torch.runs.dataset import open_images

FAST = ["--arch", "test_resnet", "--weights", "none", "--size", "32", "--batch-size", "16", "--epochs", "1,1"]
FAST += ["--device", "cpu", "--precision", "fp32", "--seed", "1"]


@pytest.fixture(scope="module")
def run(photo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a hierarchy, whose classes are the inner folders."""
    root = tmp_path_factory.mktemp("hierarchy")
    for color in sorted(folder.name for folder in photo_folder.iterdir() if folder.is_dir()):
        above = "warm" if color == "red" else "cold"
        shutil.copytree(photo_folder / color, root / "photos" / above / color)
    assert main(["train", "--data", str(root / "photos"), *FAST, "--out", str(root / "run")]) == 3
    assert not (root / "run").exists()
    words = ["train", "--data", str(root / "photos"), *FAST, "--classes", "leaf", "--out", str(root / "run")]
    assert main(words) == 0
    return root / "run"


def test_the_reading_is_that_of_the_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = load_config(file=str(run / "config.toml"))
    assert config.classes == "leaf"
    assert open_images(config).dataset.classes == tuple((run / "labels.txt").read_text().split())
    assert main(["evaluate", str(run), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["recall"]) == 3
    assert main(["evaluate", str(run), str(run.parent / "photos"), "--json"]) == 0  # others are read alike
    capsys.readouterr()
    assert main(["evaluate", str(run), str(run.parent / "photos"), "--classes", "top"]) == 3
    assert "the model has no class cold, warm" in capsys.readouterr().err
    assert main(["evaluate", str(run), "--classes", "top"]) == 2


def test_an_update_reads_new_photos_alike(run: Path, tmp_path: Path) -> None:
    for folder, count in (("warm/orange", 8), ("cold/blue", 3)):
        (tmp_path / "new" / folder).mkdir(parents=True)
        for number in range(count):
            image = Image.effect_noise((48, 40), 10 * number + count).convert("RGB")
            image.save(tmp_path / "new" / folder / f"n{number}.png")
    assert main(["update", str(run), str(tmp_path / "new"), "--out", str(tmp_path / "run")]) == 0
    assert "orange" in (tmp_path / "run/labels.txt").read_text().split()
    config = load_config(file=str(tmp_path / "run/config.toml"))
    assert config.classes == "top" and len(open_images(config).dataset.classes) == 4


def test_groups_by_a_column(run: Path, tmp_path: Path) -> None:
    photos = run.parent / "photos"
    paths = sorted(photos.rglob("*.png"))
    lines = [f"{path.relative_to(photos)},{path.parent.name},plant{number // 4}" for number, path in enumerate(paths)]
    (photos / "labels.csv").write_text("\n".join(["file,label,plant", *lines]))
    words = ["train", "--data", str(photos / "labels.csv"), *FAST, "--groups", "column:plant"]
    assert main([*words, "--out", str(tmp_path / "a")]) == 0
    assert load_config(file=str(tmp_path / "a/config.toml")).groups == "column:plant"
    plant = {line.split(",")[0]: line.split(",")[2] for line in lines}
    splits = read_split(tmp_path / "a/split.json")["splits"]
    homes: dict[str, set[str]] = {}
    for split, members in splits.items():
        for path in members:
            homes.setdefault(plant[path], set()).add(split)
    assert all(len(own) == 1 for own in homes.values()) and len(homes) > 5
    assert main(["evaluate", str(tmp_path / "a")]) == 0
