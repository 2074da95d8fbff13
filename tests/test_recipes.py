"""Every recipe in `configs/` on a few small photos, and the tutorials' own files in small."""

import dataclasses
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flowers_torch import recipe
from flowers_torch.config import Config, config_folder, load_config
from flowers_torch.deploy.predict import Classifier
from flowers_torch.models.classifier import load_classifier
from flowers_torch.prepare import prepare
from flowers_torch.stage import begin_stage
from flowers_torch.training.engine import train_step
from flowers_torch.training.runtime import choose_runtime

RECIPES = sorted(config_folder().rglob("*.toml"))
SMALLEST = {"happy_model": 16, "small_convnet": 22, "cifar10_net": 12, "resnet50_course": 64, "vgg16": 32}


def small(path: Path, data: Path, out: Path) -> Config:
    """The recipe on small photos, for an epoch of each stage, in float32 and from random weights."""
    overrides = {"data": str(data), "weights": "none", "out": str(out), "split": "60/20/20"}
    overrides |= {"device": "cpu", "precision": "fp32", "workers": 0, "batch_size": 4, "ema": 0.0}
    config = load_config(file=str(path), overrides=overrides)
    stages = [dataclasses.replace(stage, epochs=1, warmup_epochs=0.0) for stage in config.stages]
    return dataclasses.replace(config, stages=stages, size=SMALLEST.get(config.arch, 75))


@pytest.fixture(scope="session")
def two_classes(photo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("two")
    for name in ("blue", "green"):
        shutil.copytree(photo_folder / name, root / name)
    return root


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_takes_a_step_in_each_stage(path: Path, two_classes: Path, tmp_path: Path) -> None:
    run = prepare(small(path, two_classes, tmp_path / "run"))
    for number, stage in enumerate(run.config.stages):
        steps = stage if stage.optimizer != "lbfgs" else dataclasses.replace(stage, optimizer="sgd")
        training, batches = begin_stage(run, steps, number)
        images, labels, _ = next(iter(batches))
        before = {name: value.clone() for name, value in run.model.named_parameters()}
        loss = train_step(training, images, labels, 1e-3).loss
        trains = {name for name, value in run.model.named_parameters() if value.requires_grad}
        moved = {name for name, value in run.model.named_parameters() if not torch.equal(value, before[name])}
        assert math.isfinite(loss) and moved and moved <= trains


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_runs_to_its_end(path: Path, two_classes: Path, tmp_path: Path) -> None:
    result = recipe.train(small(path, two_classes, tmp_path / "run"))
    assert result.test.photos >= 2 and (result.folder / "report.html").is_file()
    load_classifier(result.folder)


def write_course_files(folder: Path, name: str, classes: int) -> Path:
    """HDF5 files as the course ships them: uint8 pictures, labels (1, N), numbers for class names."""
    import h5py

    draw = np.random.default_rng(0)
    for part, count in (("train", 24), ("test", 8)):
        labels = np.arange(count) % classes
        pictures = draw.integers(0, 60, (count, 64, 64, 3)) + 60 * labels[:, None, None, None]
        with h5py.File(folder / f"{part}_{name}.h5", "w") as file:
            file[f"{part}_set_x"] = pictures.astype(np.uint8)
            file[f"{part}_set_y"] = labels[None]
            file["list_classes"] = np.arange(classes)
    return folder / f"train_{name}.h5"


def test_the_happy_house_from_the_course_s_files_to_an_own_photo(tmp_path: Path) -> None:
    file = write_course_files(tmp_path, "happy", 2)
    overrides = {"data": str(file), "out": str(tmp_path / "run"), "stages.0.epochs": 6, "device": "cpu"}
    result = recipe.train(load_config(file="happy_house", overrides=overrides))
    assert result.test.photos == 8 and result.test.accuracy == 1
    model, record = load_classifier(result.folder)
    assert record.head == "sigmoid" and record.classes == ("0", "1")
    assert sum(p.numel() for p in model.parameters()) == 37_569
    Image.fromarray(np.full((80, 70, 3), 90, np.uint8)).save(tmp_path / "own.png")
    classifier = Classifier.load(result.folder, choose_runtime("cpu", "fp32"))
    (answer,) = classifier.predict([tmp_path / "own.png"])
    assert answer.classes[0] == "1" and sum(answer.probabilities) == pytest.approx(1)
    classifier.explain(tmp_path / "own.png")
