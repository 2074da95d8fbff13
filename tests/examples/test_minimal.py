"""The method in one file of plain PyTorch computes what the package computes without acceleration."""

import importlib.util
from pathlib import Path

import pytest

from flowers_torch.config import Config, Stage
from flowers_torch.runs.recipe import train

FILE = Path(__file__).parents[2] / "examples" / "minimal.py"


def test_the_example_and_the_package_give_the_same_numbers(photo_folder: Path, tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("minimal", FILE)
    assert spec and spec.loader
    minimal = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(minimal)
    words = [str(photo_folder), "--arch", "test_resnet", "--size", "32", "--batch-size", "8", "--seed", "3"]
    found = minimal.main(words)

    head, finetune = (
        Stage(name, epochs, name if name == "head" else "all", lr=lr, weight_decay=decay, warmup_epochs=warmup)
        for name, epochs, lr, decay, warmup in minimal.STAGES
    )
    head.augment = finetune.augment = "mirror"
    config = Config("test_resnet", str(photo_folder), "none", size=32, batch_size=8, seed=3, device="cpu")
    config.groups, config.accelerate, config.stages = "none", "off", [head, finetune]
    result = train(config, tmp_path / "run")
    assert [row["val_loss"] for row in result.history] == pytest.approx(found["losses"], rel=2e-3)
    assert result.test.accuracy == pytest.approx(found["accuracy"])


def test_the_example_is_short() -> None:
    assert len(FILE.read_text().splitlines()) <= 150
