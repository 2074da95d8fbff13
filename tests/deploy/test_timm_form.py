"""A packed folder as timm loads it, without this package: the same numbers and the same names."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from flowers_torch.cli import main
from flowers_torch.data.augment.per_image import eval_transform
from flowers_torch.data.preprocessing import Preprocessing
from flowers_torch.deploy.hub import flowers_classifier
from flowers_torch.models.checkpoint import ModelInfo, build, load_classifier, save_classifier

CLASSES = ("rose", "tulip \U0001f337", 'a "b" \ud800')
PLAIN = ModelInfo("test_resnet", CLASSES, Preprocessing(64, crop=0.8), license="mit", temperature=0.5)
TWO = CLASSES[:2]


def packed(info: ModelInfo, folder: Path) -> Path:
    """The folder that pack writes for a network with random weights, whose batch norms have seen something."""
    torch.manual_seed(0)
    model = build(info)
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    save_classifier(model.state_dict(), info, folder / "model.safetensors", best={})
    assert main(["pack", str(folder / "model.safetensors"), "--out", str(folder / "packed")]) == 0
    return folder / "packed"


@pytest.mark.parametrize(
    ("info", "exact"),
    [
        (PLAIN, True),
        (dataclasses.replace(PLAIN, dropout=0.3, head_norm=True), False),
        (dataclasses.replace(PLAIN, classes=TWO, head="sigmoid", dropout=0.2), False),
        (dataclasses.replace(PLAIN, arch="test_mambaout", dropout=0.5), False),
        (dataclasses.replace(PLAIN, arch="test_vit", model_options={"img_size": 64}), True),
        (dataclasses.replace(PLAIN, arch="test_vit", model_options={"img_size": 64, "global_pool": "avg"}), True),
        pytest.param(
            dataclasses.replace(PLAIN, arch="inception_v3", preprocessing=Preprocessing(75, stretch=True)),
            False,
            marks=pytest.mark.slow,
        ),
    ],
    ids="plain norm sigmoid mambaout vit vit_avg inception_v3".split(),
)
def test_timm_loads_a_packed_folder(info: ModelInfo, exact: bool, tmp_path: Path) -> None:
    folder = packed(info, tmp_path)
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    ours, _ = load_classifier(tmp_path / "model.safetensors")
    again, _ = load_classifier(folder)  # with this package, the packed folder says the same
    images = torch.randn(4, 3, info.preprocessing.size, info.preprocessing.size)
    with torch.inference_mode():
        expected = ours(images)
        assert expected.std() > 0.01
        assert torch.equal(theirs(images), again(images))
        assert torch.equal(theirs(images), expected) == exact or not exact
        assert torch.allclose(theirs(images), expected, rtol=1e-4, atol=1e-5)
    assert theirs.num_classes == len(info.classes)
    assert tuple(theirs.pretrained_cfg["label_names"]) == info.classes
    assert (folder / "SHA256SUMS").read_text().count("config.json") == 1


def test_timm_prepares_photos_as_we_do(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    photo = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).resize((200, 150))
    for inputs in (Preprocessing(64, crop=0.8), Preprocessing(64, (0.5,) * 3, (0.25,) * 3, "bilinear", stretch=True)):
        folder = packed(dataclasses.replace(PLAIN, preprocessing=inputs), tmp_path / str(inputs.stretch))
        network = timm.create_model(f"local-dir:{folder}", pretrained=True)
        config = timm.data.resolve_model_data_config(network)
        theirs = timm.data.create_transform(**config)(photo)
        ours = eval_transform(**inputs.transform_options())(photo)
        assert theirs.shape == ours.shape == (3, 64, 64)
        assert float((theirs - ours).abs().mean()) < 0.5 / 255 / inputs.std[0]


def test_what_timm_cannot_compute_has_no_config(small: Any, tmp_path: Path, capsys: Any) -> None:
    """A hidden layer, a feature set, and a network that only this package has; an earlier config.json does not stay."""
    folder = packed(PLAIN, tmp_path)
    vit = dataclasses.replace(PLAIN, arch="test_vit", model_options={"img_size": 64})
    for info, path in (
        (dataclasses.replace(PLAIN, head_hidden=8), tmp_path / "hidden/model.safetensors"),
        (dataclasses.replace(vit, features="mean"), tmp_path / "features/model.safetensors"),
        (None, small.file),
    ):
        if info:
            save_classifier(build(info).state_dict(), info, path)
        capsys.readouterr()
        assert main(["pack", str(path), "--out", str(folder)]) == 0
        assert "timm and transformers cannot load this network" in capsys.readouterr().out
        assert not (folder / "config.json").exists() and "timm" not in (folder / "README.md").read_text()
        assert (folder / "model.safetensors").read_bytes() == path.read_bytes()


def test_the_config_has_the_fields_that_timm_writes_itself(tmp_path: Path) -> None:
    """Against `save_config_for_hf`, of this version of timm."""
    folder = packed(PLAIN, tmp_path)
    network = timm.create_model(f"local-dir:{folder}", pretrained=True)
    timm.models._hub.save_config_for_hf(network, tmp_path / "theirs.json", {"label_names": list(CLASSES)})
    ours, theirs = (json.loads(path.read_text()) for path in (folder / "config.json", tmp_path / "theirs.json"))
    for name in ("architecture", "num_classes", "num_features", "label_names"):
        assert ours[name] == theirs[name]
    pretrained = ours["pretrained_cfg"]
    known = ("input_size", "crop_pct", "crop_mode", "interpolation", "mean", "std", "first_conv", "classifier")
    assert {name: pretrained[name] for name in known} == {name: theirs["pretrained_cfg"][name] for name in known}


def test_hub_turns_phone_photos_upright(tmp_path: Path) -> None:
    """`transform` takes what Pillow opens: of any mode, in any orientation, and never turned twice."""
    from flowers_torch.data.images import load_image

    folder = packed(PLAIN, tmp_path)
    transform = flowers_classifier(str(folder)).transform
    rng = np.random.default_rng(0)
    scene = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)).resize((140, 100))
    exif = Image.Exif()
    for orientation in range(1, 9):
        exif[0x0112] = orientation
        path = tmp_path / f"{orientation}.jpg"
        scene.save(path, quality=95, exif=exif)
        with Image.open(path) as photo:
            expected = transform(load_image(path))
            assert torch.equal(transform(photo), expected)
            assert torch.equal(transform(photo.convert("RGB")), expected)  # Pillow keeps the orientation
        upright = np.asarray(load_image(path))
        assert torch.equal(transform(Image.fromarray(upright)), expected), "turned twice"
    for mode in ("L", "P", "RGBA", "CMYK", "1", "LA"):
        path = tmp_path / f"{mode}.{'tif' if mode == 'CMYK' else 'png'}"
        scene.convert(mode).save(path)
        with Image.open(path) as photo:
            assert torch.equal(transform(photo), transform(load_image(path))), mode
