"""Every recipe in `configs/` on a few small images, and small files in the format of the tutorials."""

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

from flowers_torch.config import Config, Stage
from flowers_torch.config_file import config_folder, load_config
from flowers_torch.deploy.predictor import Predictor
from flowers_torch.models.checkpoint import load_classifier
from flowers_torch.report.run_summary import read_history
from flowers_torch.runs import recipe
from flowers_torch.runs.experiment import Experiment
from flowers_torch.runs.linear_probe import fit_head
from flowers_torch.runs.stage import make_train_state
from flowers_torch.training.checkpoint import Checkpointer, RunState
from flowers_torch.training.device import choose_runtime
from flowers_torch.training.step import train_step
from flowers_torch.training.stopping import StopRequest

RECIPES = sorted(config_folder().rglob("*.toml"))
SMALLEST = {"happy_model": 16, "happy_blocks": 16, "lenet5": 16, "small_convnet": 22, "cifar10_net": 12}
SMALLEST |= {"resnet50_course": 64, "vgg16": 32}


def small(path: Path, data: Path, changes: dict[str, Any] | None = None) -> Config:
    """The recipe on small images, for an epoch of each stage, in float32 and from random weights."""
    overrides = {"data": str(data), "weights": "none", "split": "60/20/20"}
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


def trainable(model: nn.Module, train: str) -> set[str]:
    """Names of the parameters that a stage may change, by the meaning of its `train`."""
    names = [name for name, _ in model.named_parameters()]  # registered in forward order
    if train == "all":
        return set(names)
    if train == "head":
        head = {id(parameter) for parameter in model.get_classifier().parameters()}
        return {name for name, parameter in model.named_parameters() if id(parameter) in head}
    if train == "keras:249":
        return {name for name in names if name.split(".")[0] in ("Mixed_7b", "Mixed_7c", "fc")}
    first = next(place for place, name in enumerate(names) if name.startswith(f"{train}."))
    return set(names[first:])


def first_batch(experiment: Experiment, stage: Stage) -> Any:
    return next(iter(experiment.loaders.training(experiment.splits["train"], stage.augment, stage.mixup)))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_stage_trains_only_its_parameters(path: Path, two_classes: Path, tmp_path: Path) -> None:
    experiment, model = Experiment.new(small(path, two_classes))
    experiment = dataclasses.replace(experiment, folder=tmp_path)
    checkpointer = Checkpointer(tmp_path, RunState(), experiment.info, minutes=60)
    for number, stage in enumerate(experiment.config.stages):
        before = {name: value.clone() for name, value in model.named_parameters()}
        if stage.optimizer == "lbfgs":
            checkpointer.state.stage = number
            fit_head(experiment, model, checkpointer, StopRequest())
            loss = checkpointer.state.history[-1]["train_loss"]
        else:
            train = make_train_state(experiment, model, stage, number)
            assert (train.average is not None) == (experiment.config.ema > 0)
            images, labels, _ = first_batch(experiment, stage)
            loss = train_step(train, images, labels, 1e-3).loss
        allowed = trainable(model, stage.train)
        moved = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
        trains = {name for name, value in model.named_parameters() if value.requires_grad}
        assert math.isfinite(loss) and trains == allowed and moved <= allowed
        # Biases in front of a batch norm may get no gradient; weights of layers do.
        assert {name for name in allowed if before[name].ndim > 1} <= moved


VARIANTS = {"model_options.global_pool": "avg", "stages.bottleneck.l2": 0.001, "dropout": 0.8}


@pytest.mark.parametrize("names", [*([name] for name in VARIANTS), list(VARIANTS)], ids=" ".join)
def test_variants_of_the_head_take_a_step(names: list[str], two_classes: Path) -> None:
    """Global average instead of Flatten, an L2 penalty, more dropout."""
    path = config_folder() / "five_animals_bottleneck.toml"
    config = small(path, two_classes, {name: VARIANTS[name] for name in names})
    experiment, model = Experiment.new(dataclasses.replace(config, size=64))
    train = make_train_state(experiment, model, config.stages[0], 0)
    head = model.get_classifier()
    before = [parameter.clone() for parameter in head.parameters()]
    images, labels, _ = first_batch(experiment, config.stages[0])
    assert math.isfinite(train_step(train, images, labels, 1e-3).loss)
    assert not any(torch.equal(*pair) for pair in zip(before, head.parameters(), strict=True))
    inputs = next(layer.in_features for layer in head.modules() if isinstance(layer, nn.Linear))
    assert inputs == (512 if "model_options.global_pool" in names else 2 * 2 * 512)
    assert (train.penalty is not None) == ("stages.bottleneck.l2" in names)
    rates = {layer.p for layer in model.modules() if isinstance(layer, nn.Dropout) and layer.p}
    assert rates == {0.8 if "dropout" in names else 0.5}


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_runs_to_its_end(path: Path, two_classes: Path, tmp_path: Path) -> None:
    config = small(path, two_classes)
    result = recipe.train(config, tmp_path / "run")
    assert result.test.images >= 2 and (result.folder / "report.html").is_file()
    rows = read_history(result.folder)
    assert [row["stage"] for row in rows] == [stage.name for stage in config.stages]
    losses = [float(row[name]) for row in rows for name in ("train_loss", "val_loss")]
    assert all(math.isfinite(loss) for loss in (*losses, result.test.loss))
    assert load_classifier(result.folder)[1].classes == ("blue", "green")


def write_course_files(folder: Path, name: str, classes: int) -> Path:
    """HDF5 files as those of the course: uint8 images, labels (1, N), numbers as class names."""
    import h5py

    draw = np.random.default_rng(0)
    for part, count in (("train", 24), ("test", 8)):
        labels = np.arange(count) % classes
        images = draw.integers(0, 60, (count, 64, 64, 3)) + 60 * labels[:, None, None, None]
        with h5py.File(folder / f"{part}_{name}.h5", "w") as file:
            file[f"{part}_set_x"] = images.astype(np.uint8)
            file[f"{part}_set_y"] = labels[None]
            file["list_classes"] = np.arange(classes)
    return folder / f"train_{name}.h5"


def test_happy_house_from_the_files_of_the_course_to_a_prediction(tmp_path: Path) -> None:
    file = write_course_files(tmp_path, "happy", 2)
    overrides = {"data": str(file), "stages.scratch.epochs": 6, "device": "cpu"}
    result = recipe.train(load_config(file="happy_house", overrides=overrides), tmp_path / "run")
    assert result.test.images == 8 and result.test.accuracy == 1
    model, info = load_classifier(result.folder)
    assert info.head == "sigmoid" and info.classes == ("0", "1")
    assert sum(p.numel() for p in model.parameters()) == 37_569
    Image.fromarray(np.full((80, 70, 3), 90, np.uint8)).save(tmp_path / "own.png")
    classifier = Predictor.load(result.folder, choose_runtime("cpu", "fp32"))
    (prediction,) = classifier.predict([tmp_path / "own.png"])
    assert prediction.classes[0] == "1" and sum(prediction.probabilities) == pytest.approx(1)
    classifier.explain(tmp_path / "own.png")


@pytest.mark.slow
def test_signs_from_the_files_of_the_course(tmp_path: Path) -> None:
    file = write_course_files(tmp_path, "signs", 6)
    overrides = {"data": str(file), "stages.scratch.epochs": 1, "device": "cpu"}
    result = recipe.train(load_config(file="signs_resnet50", overrides=overrides), tmp_path / "run")
    assert result.test.images == 8 and math.isfinite(result.test.loss)
    model, info = load_classifier(result.folder)
    assert info.head == "softmax" and info.classes == tuple("012345")
    assert sum(p.numel() for p in model.parameters()) == 23_546_886
    Image.fromarray(np.full((80, 70, 3), 90, np.uint8)).save(tmp_path / "own.png")
    classifier = Predictor.load(result.folder, choose_runtime("cpu", "fp32"))
    (prediction,) = classifier.predict([tmp_path / "own.png"], top=6)
    assert sorted(prediction.classes) == list("012345") and sum(prediction.probabilities) == pytest.approx(1)
