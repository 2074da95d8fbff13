"""A small trained classifier, and the files of its photos."""

from pathlib import Path
from typing import Any

import pytest

from flowers_torch import TrainResult, train

SMALL: dict[str, Any] = {"size": 32, "device": "cpu", "precision": "fp32", "batch_size": 8, "quiet": True}


@pytest.fixture(scope="session")
def small() -> dict[str, Any]:
    """Arguments of a quick run."""
    return {"model": "test_resnet", "weights": "none", "head_only": True} | SMALL


@pytest.fixture(scope="session")
def trained(photo_folder: Path, tmp_path_factory: pytest.TempPathFactory, small: dict[str, Any]) -> TrainResult:
    return train(photo_folder, out=tmp_path_factory.mktemp("runs") / "colors", **small)


@pytest.fixture(scope="session")
def files(photo_folder: Path) -> list[Path]:
    return sorted(photo_folder.rglob("*.png"))
