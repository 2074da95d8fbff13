"""Figures as files."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flowers_torch.evaluation.plots import plot_curves

HISTORY = [
    {
        "stage": s,
        "train_loss": 1 / n,
        "val_loss": 1.2 / n,
        "train_accuracy": 1 - 0.5 / n,
        "val_accuracy": 1 - 0.6 / n,
    }
    for n, s in enumerate(["head", "head", "finetune", "finetune"], start=1)
]


def test_curves_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert plot_curves(HISTORY, tmp_path / "figures" / "curves.png")
    pixels = np.asarray(Image.open(tmp_path / "figures" / "curves.png").convert("RGB"))
    blue = (pixels[..., 2].astype(int) - pixels[..., 0] > 80).sum()
    assert blue > 300  # the validation curves are there


def test_without_matplotlib_nothing_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert not plot_curves(HISTORY, tmp_path / "curves.png")
    assert not list(tmp_path.iterdir())
