"""Files of features: their size and the memory that they need are limited, however many images there are."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from flowers_torch.config import Config, Stage
from flowers_torch.runs import feature_files
from flowers_torch.runs.experiment import Experiment
from flowers_torch.runs.feature_files import FeatureFiles

WIDTH = 1024


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FeatureFiles:
    """With room for three images in a shard."""
    monkeypatch.setattr(feature_files, "SHARD_BYTES", 3 * 4 * WIDTH)
    return FeatureFiles(tmp_path, "key", WIDTH)


def rows(first: int, stop: int) -> tuple[list[str], Tensor]:
    return [f"image {number}" for number in range(first, stop)], torch.arange(first, stop).float().repeat(WIDTH, 1).T


def read(files: FeatureFiles) -> dict[str, list[float]]:
    return {name: row for names, features in files.shards() for name, row in zip(names, features.tolist(), strict=True)}


def test_a_shard_is_filled_before_the_next_one_begins(files: FeatureFiles, tmp_path: Path) -> None:
    for first, stop in ((0, 2), (2, 7), (7, 8)):
        files.add(*rows(first, stop))
    assert [len(names) for names, _ in files.shards()] == [3, 3, 2]
    assert read(files) == {f"image {number}": [float(number)] * WIDTH for number in range(8)}
    assert not read(FeatureFiles(tmp_path, "other", WIDTH))


def test_a_damaged_shard_costs_only_its_own_images(files: FeatureFiles) -> None:
    files.add(*rows(0, 8))
    for path in files._paths()[::2]:
        path.write_bytes(path.read_bytes()[:-5] + b"wrong")
    assert list(read(files)) == ["image 3", "image 4", "image 5"]
    files.add(*rows(0, 4))
    assert list(read(files)) == ["image 3", "image 4", "image 5", "image 0", "image 1", "image 2"]


class Allocations(TorchDispatchMode):
    """Keeps the memory of every matrix of features that is made inside, of some number of images or more."""

    def __init__(self, images: int, width: int) -> None:
        super().__init__()
        self.images, self.width, self.found = images, width, dict[int, Any]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor) and made.shape[1:] == (self.width,) and len(made) >= self.images:
            self.found.setdefault(made.untyped_storage().data_ptr(), made)
        return made


def test_features_are_in_memory_once(
    make_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether they are computed or read, and beside them one shard."""
    monkeypatch.setenv("FLOWERS_TORCH_CACHE", str(tmp_path / "cache"))
    experiment, model = Experiment.new(make_config(Stage(train="head"), batch_size=4))
    split, images = experiment.features.split(model), range(48)
    assert split
    monkeypatch.setattr(feature_files, "SHARD_BYTES", 8 * 4 * split.width)
    made = []
    for _ in range(2):
        with Allocations(9, split.width) as allocations:
            made.append(experiment.features.features(split, images, "mirror", 2))
        assert len(allocations.found) == 1
    assert made[0] is not None and made[0].shape == (96, split.width)
    assert made[1] is not None and torch.equal(*made)
    assert len(list((tmp_path / "cache" / "features").iterdir())) == 2 * 6
