"""The commands models, layers, summary, plot and features."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flowers_torch.cli import main
from flowers_torch.files.tensors import safe_load


def test_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "mobilenet_v2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["name", "parameters", "size", "min", "weights", "top-1", "license", "keras"]
    assert "mobilenet_v2 3,538,984 224 32 - - - MobileNetV2" == " ".join(lines[1].split())
    assert main(["models", "xception", "--keras"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == "name parameters size min Keras min MB top-1 top-5 depth keras"
    assert lines[1] == "xception 22,910,480 299 71 71 88 0.790 0.945 126 Xception"
    assert main(["models", "nothing_like_it"]) == 2
    assert "no network matches 'nothing_like_it'" in capsys.readouterr().err


def test_layers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["layers", "mobilenet", "--keras", "--size", "64"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 86
    assert lines[2].split() == ["1", "conv1", "Conv2D", "32x32x32", "864", "conv1.conv"]
    assert main(["layers", "lenet5"]) == 0
    assert "fc" in capsys.readouterr().out.splitlines()[-1]
    assert main(["layers", "lenet5", "--keras"]) == 2
    assert "LeNet5 is not a network of Keras" in capsys.readouterr().err
    assert main(["layers", "vgg16", "--size", "16"]) == 2


def test_summary(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["summary", "happy_model", "--classes", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-3:] == ["Total parameters: 37,633", "Trainable: 37,569", "Non-trainable: 64"]


def test_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plot", "lenet5", str(tmp_path / "lenet.svg")]) == 0
    assert (tmp_path / "lenet.svg").read_text().startswith("<?xml")
    assert "layers drawn in" in capsys.readouterr().out
    assert main(["plot", "lenet5", str(tmp_path / "lenet.doc")]) == 2


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_features(tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(3):
        Image.new("RGB", (40, 30), (80 * i, 20, 200)).save(tmp_path / f"{i}.png")
    out = tmp_path / f"features.{suffix}"
    arguments = ["features", "mobilenet", str(tmp_path), "--weights", "none", "--layer", "conv_pw_1_relu"]
    assert main([*arguments, "--out", str(out), "--batch-size", "2", "--device", "cpu"]) == 0
    assert "features 3 x 64 of 3 photos" in capsys.readouterr().out
    if suffix == "npz":
        with np.load(out) as found:
            assert found["features"].shape == (3, 64) and found["photos"][2].endswith("2.png")
            assert not np.array_equal(found["features"][0], found["features"][2])
    else:
        tensors, metadata = safe_load(out)
        assert tensors["features"].shape == (3, 64) and metadata["layer"] == "conv_pw_1_relu"
    assert main([*arguments, "--out", str(tmp_path / "x.csv")]) == 2
    assert main(["features", "mobilenet", str(tmp_path), "--out", str(out)]) == 2  # no weights named
    unneeded = ["features", str(tmp_path), str(tmp_path), "--out", str(out), "--keras-input", "tf"]
    assert main(unneeded) == 2 and "--keras-input needs a Keras file" in capsys.readouterr().err
