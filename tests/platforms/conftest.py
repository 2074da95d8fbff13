"""The configuration of a run that takes a second."""

from collections.abc import Callable
from pathlib import Path

import pytest

OPTIONS = """
arch = "test_resnet"
weights = "none"
size = 32
batch_size = 8
precision = "fp32"
device = "{device}"
threads = 1
workers = 0

[[stages]]
name = "head"
epochs = {epochs}
train = "head"
lr = 0.01

[[stages]]
name = "finetune"
epochs = {epochs}
train = "all"
lr = 0.003
augment = "{augment}"
"""


@pytest.fixture(scope="session")
def write_options() -> Callable[..., Path]:
    """Writes folder/options.toml: a head, and fine-tuning of all layers."""

    def write(folder: Path, device: str = "cpu", epochs: int = 1, augment: str = "crop") -> Path:
        path = folder / "options.toml"
        path.write_text(OPTIONS.format(device=device, epochs=epochs, augment=augment))
        return path

    return write
