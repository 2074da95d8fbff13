"""The examples say what they promise to say."""

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_inception_multiplications(capsys: pytest.CaptureFixture[str]) -> None:
    load("inception_multiplications").main()
    printed = capsys.readouterr().out
    assert "120,422,400" in printed
    assert "12,443,648 multiplications, 90% fewer" in printed


def draw_waves(folder: Path) -> None:
    """Noisy photos of four waves that a mirror does not change: to be learned, but not from single pixels."""
    generator = np.random.default_rng(0)
    rows, columns = np.mgrid[-8:8, -8:8]
    waves = {
        "upright": lambda f, shift: np.sin(f * columns + shift),
        "level": lambda f, shift: np.sin(f * rows + shift),
        "checked": lambda f, shift: np.sin(f * rows + shift) * np.sin(f * columns + shift),
        "rings": lambda f, shift: np.sin(f * np.hypot(rows, columns) + shift),
    }
    for name, wave in waves.items():
        (folder / name).mkdir(parents=True)
        for number in range(64):
            ideal = 60 * wave(generator.uniform(0.7, 1.4), generator.uniform(0, 6))
            noisy = 128 + ideal[..., None] + generator.normal(0, 40, (16, 16, 3))
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / name / f"{number}.png")


@pytest.mark.slow
def test_plain_networks_get_harder_to_train_and_residual_ones_do_not(tmp_path: Path) -> None:
    draw_waves(tmp_path / "waves")
    plot = tmp_path / "plot.svg"
    arguments = ["--data", str(tmp_path / "waves"), "--depths", "8", "44", "--seeds", "0"]
    results = load("plain_vs_residual").main([*arguments, "--epochs", "12", "--out", str(plot)])
    error = {key: float(errors[:, -1].mean()) for key, errors in results.items()}
    assert error["plain", 44] > error["plain", 8] + 0.2
    assert error["residual", 44] < error["residual", 8] + 0.05
    assert plot.read_text().count("<polyline") == 2


def test_the_notebook_runs_cell_by_cell(
    photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["notebook.py", str(photo_folder)])
    cells = (EXAMPLES / "notebook.py").read_text().split("# %%")
    assert len(cells) >= 6
    load("notebook")
    printed = capsys.readouterr().out
    assert "accuracy" in printed and "('blue', 'green', 'red')" in printed and "0.png" in printed


def test_a_research_network_from_the_blocks_learns(capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    load("residual_net")
    assert float(capsys.readouterr().out.split()[-1]) < 0.1
    code = (EXAMPLES / "residual_net.py").read_text().rpartition('"""')[2]
    assert len([line for line in code.splitlines() if line.strip()]) == 15
