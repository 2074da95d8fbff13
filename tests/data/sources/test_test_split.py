"""The test split of another source: its images, its classes, its copies among the others."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flowers_torch.config import Config
from flowers_torch.data.quality.exclude import drop_images
from flowers_torch.data.quality.report import check_quality
from flowers_torch.data.quality.scan import inspect_images
from flowers_torch.data.sources.open import open_dataset
from flowers_torch.errors import DataError
from flowers_torch.runs.dataset import choose_splits, open_images


def photo(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((80, 60), Image.Resampling.BICUBIC).save(path)
    return path


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Ten photos in train and four in validation of each class, and four to test on in another folder."""
    for label, name in enumerate("ab"):
        for i in range(10):
            photo(tmp_path / f"set/train/{name}/{i}.png", 100 * label + i)
        for i in range(4):
            photo(tmp_path / f"set/validation/{name}/{i}.png", 100 * label + 20 + i)
            photo(tmp_path / f"other/{name}/{i}.png", 100 * label + 40 + i)
    return tmp_path


def sizes(dataset) -> dict[str, int]:
    splits = choose_splits(dataset, Config(split="80/10/10"))
    return {name: len(indices) for name, indices in splits.items()}


def test_the_validation_photos_are_the_test(folders: Path) -> None:
    dataset = open_dataset(folders / "set", test="val")
    assert sizes(dataset) == {"train": 18, "val": 2, "test": 8}
    assert "8 photos of val are the test; val is drawn from train" in dataset.notes
    photo(folders / "set/test/a/0.png", 7)
    photo(folders / "set/test/b/0.png", 8)
    assert open_dataset(folders / "set", test="val") == open_dataset(folders / "set")  # it has a test


def test_another_folder_is_the_test(folders: Path) -> None:
    dataset = open_dataset(folders / "set", test=str(folders / "other"))
    assert sizes(dataset) == {"train": 20, "val": 8, "test": 8} and dataset.name == "set"
    assert all((dataset.root / path).is_file() for path in dataset.paths)
    assert {path.split("/")[0] for path, split in dataset.split.items() if split == "test"} == {"other"}
    plain = open_dataset(folders / "set/train", test=str(folders / "other"))
    assert sizes(plain) == {"train": 18, "val": 2, "test": 8}


def test_a_test_of_its_own_is_left_out(folders: Path) -> None:
    """Of the first source; of the second one all but its test."""
    (folders / "set/validation").rename(folders / "set/test")
    for name in "ab":
        photo(folders / f"both/train/{name}/0.png", 70)
        photo(folders / f"both/test/{name}/1.png", 71)
    dataset = open_dataset(folders / "set", test=str(folders / "both"))
    assert sizes(dataset) == {"train": 18, "val": 2, "test": 2}
    assert "10 photos left out, because the test is from both" in dataset.notes[-1]


def test_what_cannot_be_a_test_is_refused(folders: Path) -> None:
    (folders / "other/b").rename(folders / "other/c")
    with pytest.raises(DataError, match="classes of test in .*other differ from those of train: missing b, extra c"):
        open_dataset(folders / "set", test=str(folders / "other"))
    with pytest.raises(DataError, match="--test .*nowhere does not exist"):
        open_dataset(folders / "set", test=str(folders / "nowhere"))
    with pytest.raises(DataError, match="--test train holds photos that --data set holds too"):
        open_dataset(folders / "set", test=str(folders / "set/train"))


def test_the_exclude_list_leaves_out_copies_of_test_photos(folders: Path) -> None:
    """Also if they are saved again. Of copies in train and val, the one in val stays."""
    train, val, test = (folders / place for place in ("set/train/a", "set/validation/a", "other/a"))
    (train / "copy.png").write_bytes((test / "0.png").read_bytes())
    Image.open(test / "1.png").convert("RGB").resize((120, 90)).save(val / "larger.jpg", quality=90)
    (train / "of_val.png").write_bytes((val / "2.png").read_bytes())
    config = Config(data=str(folders / "set"), test=str(folders / "other"))
    filtered = open_images(config)
    assert any("3 pictures are in several splits" in warning for warning in filtered.warnings)
    report = check_quality(filtered.dataset, inspect_images(filtered.dataset), duplicates=filtered.found)
    excluded = {"set/train/a/copy.png", "set/train/a/of_val.png", "set/validation/a/larger.jpg"}
    assert set(report.exclude_list()) == excluded
    rest = drop_images(filtered.dataset, report.exclude_list())
    again = check_quality(rest, inspect_images(rest))
    assert "duplicates_across_splits" not in {finding.kind for finding in again.findings}
