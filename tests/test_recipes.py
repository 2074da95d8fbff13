"""Every recipe in `configs/` on a few small photos, and the tutorials' own files in small."""

import dataclasses
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from flowers_torch.config import Config
from flowers_torch.config_file import config_folder, load_config
from flowers_torch.deploy.classifier import Classifier
from flowers_torch.models.checkpoint import load_classifier
from flowers_torch.report.run_summary import read_history
from flowers_torch.runs import recipe
from flowers_torch.runs.experiment import prepare
from flowers_torch.runs.stage import begin_stage, fit_head
from flowers_torch.training.checkpoint import Checkpointer, RunState
from flowers_torch.training.device import choose_runtime
from flowers_torch.training.step import train_step
from flowers_torch.training.stopping import StopRequest

RECIPES = sorted(config_folder().rglob("*.toml"))
SMALLEST = {"happy_model": 16, "small_convnet": 22, "cifar10_net": 12, "resnet50_course": 64, "vgg16": 32}


def small(path: Path, data: Path, out: Path, changes: dict[str, Any] | None = None) -> Config:
    """The recipe on small photos, for an epoch of each stage, in float32 and from random weights."""
    overrides = {"data": str(data), "weights": "none", "out": str(out), "split": "60/20/20"}
    overrides |= {"device": "cpu", "precision": "fp32", "workers": 0, "batch_size": 4}
    config = load_config(file=str(path), overrides=overrides | (changes or {}))
    stages = [dataclasses.replace(stage, epochs=1, warmup_epochs=0.0) for stage in config.stages]
    return dataclasses.replace(config, stages=stages, size=SMALLEST.get(config.arch, 75))


@pytest.fixture(scope="session")
def two_classes(photo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("two")
    for name in ("blue", "green"):
        shutil.copytree(photo_folder / name, root / name)
    return root


def may_move(model: nn.Module, train: str) -> set[str]:
    """Names of the parameters that a stage is allowed to change, by the plain meaning of its `train`."""
    names = [name for name, _ in model.named_parameters()]  # every network registers them in forward order
    if train == "all":
        return set(names)
    if train == "head":
        head = {id(parameter) for parameter in model.get_classifier().parameters()}
        return {name for name, parameter in model.named_parameters() if id(parameter) in head}
    if train == "keras:249":
        return {name for name in names if name.split(".")[0] in ("Mixed_7b", "Mixed_7c", "fc")}
    first = next(place for place, name in enumerate(names) if name.startswith(f"{train}."))
    return set(names[first:])


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_trains_in_each_stage_what_it_may(path: Path, two_classes: Path, tmp_path: Path) -> None:
    run = prepare(small(path, two_classes, tmp_path / "run"))
    run.folder = tmp_path
    saver = Checkpointer(tmp_path, RunState(), run.info, minutes=60)
    for number, stage in enumerate(run.config.stages):
        before = {name: value.clone() for name, value in run.model.named_parameters()}
        if stage.optimizer == "lbfgs":
            saver.progress.stage = number
            fit_head(run, saver, StopRequest())
            loss = saver.progress.history[-1]["train_loss"]
        else:
            training, batches = begin_stage(run, stage, number)
            assert (training.average is not None) == (run.config.ema > 0)
            images, labels, _ = next(iter(batches))
            loss = train_step(training, images, labels, 1e-3).loss
        allowed = may_move(run.model, stage.train)
        moved = {name for name, value in run.model.named_parameters() if not torch.equal(value, before[name])}
        trains = {name for name, value in run.model.named_parameters() if value.requires_grad}
        assert math.isfinite(loss) and trains == allowed and moved <= allowed
        # Biases in front of a batch norm may get no gradient; weights of layers do.
        assert {name for name in allowed if before[name].ndim > 1} <= moved


VARIANTS = {"model_options.global_pool": "avg", "stages.bottleneck.l2": 0.001, "dropout": 0.8}


@pytest.mark.parametrize("names", [*([name] for name in VARIANTS), list(VARIANTS)], ids=" ".join)
def test_the_tutorial_s_variants_of_a_head_take_a_step(
    names: list[str], two_classes: Path, tmp_path: Path
) -> None:
    """Global average instead of Flatten, an L2 penalty, more dropout."""
    path = config_folder() / "five_animals_bottleneck.toml"
    config = small(path, two_classes, tmp_path, {name: VARIANTS[name] for name in names})
    run = prepare(dataclasses.replace(config, size=64))
    training, batches = begin_stage(run, run.config.stages[0], 0)
    head = run.model.get_classifier()
    before = [parameter.clone() for parameter in head.parameters()]
    images, labels, _ = next(iter(batches))
    assert math.isfinite(train_step(training, images, labels, 1e-3).loss)
    assert not any(torch.equal(*pair) for pair in zip(before, head.parameters(), strict=True))
    inputs = next(layer.in_features for layer in head.modules() if isinstance(layer, nn.Linear))
    assert inputs == (512 if "model_options.global_pool" in names else 2 * 2 * 512)
    assert (training.penalty is not None) == ("stages.bottleneck.l2" in names)
    rates = {layer.p for layer in run.model.modules() if isinstance(layer, nn.Dropout) and layer.p}
    assert rates == {0.8 if "dropout" in names else 0.5}


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_runs_to_its_end(path: Path, two_classes: Path, tmp_path: Path) -> None:
    config = small(path, two_classes, tmp_path / "run")
    result = recipe.train(config)
    assert result.test.images >= 2 and (result.folder / "report.html").is_file()
    rows = read_history(result.folder)
    assert [row["stage"] for row in rows] == [stage.name for stage in config.stages]
    losses = [float(row[name]) for row in rows for name in ("train_loss", "val_loss")]
    assert all(math.isfinite(loss) for loss in (*losses, result.test.loss))
    assert load_classifier(result.folder)[1].classes == ("blue", "green")


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
    overrides = {"data": str(file), "out": str(tmp_path / "run"), "stages.scratch.epochs": 6, "device": "cpu"}
    result = recipe.train(load_config(file="happy_house", overrides=overrides))
    assert result.test.images == 8 and result.test.accuracy == 1
    model, info = load_classifier(result.folder)
    assert info.head == "sigmoid" and info.classes == ("0", "1")
    assert sum(p.numel() for p in model.parameters()) == 37_569
    Image.fromarray(np.full((80, 70, 3), 90, np.uint8)).save(tmp_path / "own.png")
    classifier = Classifier.load(result.folder, choose_runtime("cpu", "fp32"))
    (answer,) = classifier.predict([tmp_path / "own.png"])
    assert answer.classes[0] == "1" and sum(answer.probabilities) == pytest.approx(1)
    classifier.explain(tmp_path / "own.png")


@pytest.mark.slow
def test_signs_from_the_course_s_files(tmp_path: Path) -> None:
    file = write_course_files(tmp_path, "signs", 6)
    overrides = {"data": str(file), "out": str(tmp_path / "run"), "stages.scratch.epochs": 1, "device": "cpu"}
    result = recipe.train(load_config(file="signs_resnet50", overrides=overrides))
    assert result.test.images == 8 and math.isfinite(result.test.loss)
    model, info = load_classifier(result.folder)
    assert info.head == "softmax" and info.classes == tuple("012345")
    assert sum(p.numel() for p in model.parameters()) == 23_546_886
    Image.fromarray(np.full((80, 70, 3), 90, np.uint8)).save(tmp_path / "own.png")
    classifier = Classifier.load(result.folder, choose_runtime("cpu", "fp32"))
    (answer,) = classifier.predict([tmp_path / "own.png"], top=6)
    assert sorted(answer.classes) == list("012345") and sum(answer.probabilities) == pytest.approx(1)
