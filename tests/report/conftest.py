"""A finished run folder, made without training, whose names would harm a page that does not escape them."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flowers_torch.config import Config, Stage
from flowers_torch.config_file import to_toml
from flowers_torch.data.dataset import ImageDataset
from flowers_torch.data.preprocessing import Preprocessing
from flowers_torch.data.sources.folders import find_images
from flowers_torch.data.splits.split_file import SPLIT_FORMAT
from flowers_torch.evaluation.metrics import score
from flowers_torch.evaluation.predictions import Predictions, save_predictions
from flowers_torch.files.atomic import write_csv, write_json
from flowers_torch.models.checkpoint import ModelInfo, build
from flowers_torch.report.image_sections import Source
from flowers_torch.report.page import write_report
from flowers_torch.training.device import Runtime

HOSTILE_CLASS = '"><img src=x onerror=window.hacked=1>'
HOSTILE_FILES = ("'><svg onload=window.hacked=1>.png", "\u202egnp.evil.png", "a&lt;b.png", "${1}`x`.png")
SIDE = 32


@dataclasses.dataclass(frozen=True)
class Finished:
    """The folder with what it was made from."""

    folder: Path
    photos: ImageDataset
    info: ModelInfo
    source: Source
    page: Path


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    root = tmp_path_factory.mktemp("hostile") / "photos"
    draw = np.random.default_rng(0)
    for number, name in enumerate(("iris", "rose", HOSTILE_CLASS)):
        (root / name).mkdir(parents=True)
        names = [f"{i}.png" for i in range(26)] + list(HOSTILE_FILES)
        for file in names:
            pixels = draw.integers(0, 256, (40, 48, 3)) // 4 + np.eye(3, dtype=int)[number] * 150
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / file)
    photos = find_images(root, name="<b>photos</b>")
    folder = tmp_path_factory.mktemp("runs") / "run"
    info = ModelInfo(
        "test_resnet", photos.classes, Preprocessing(size=SIDE), weights="none", license="<script>1</script>"
    )
    write_run(folder, photos)
    torch.manual_seed(0)
    source = Source(photos, [], build(info).eval(), Runtime(torch.device("cpu"), "fp32", "for a test"))
    # Photos of equal number, such as rose/7.png and iris/7.png, have nearly the same features.
    places = torch.randn(len(photos), 8, generator=torch.Generator().manual_seed(0))
    numbers = [int(Path(path).stem) if Path(path).stem.isdecimal() else 0 for path in photos.paths]
    source = dataclasses.replace(
        source, features=lambda indices: places[[numbers[i] for i in indices]] + 0.01 * places[indices]
    )
    page = write_report(folder, info, source)
    return Finished(folder, photos, info, source, page)


def write_run(folder: Path, photos: ImageDataset) -> None:
    """Files as a training leaves them, of a model that is right two times out of three."""
    stages = [Stage(name="head", train="head"), Stage(name="finetune", epochs=2)]
    folder.mkdir(exist_ok=True)
    (folder / "config.toml").write_text(to_toml(Config(arch="test_resnet", size=SIDE, stages=stages), "test"))
    (folder / "command.txt").write_text("flowers-torch train --data '<i>x'\n")
    (folder / "environment.json").write_text(json.dumps({"torch": torch.__version__, "gpu": None}))
    parts = {
        "train": range(0, len(photos), 3),
        "val": range(1, len(photos), 3),
        "test": range(2, len(photos), 3),
    }
    paths = {part: [photos.paths[i] for i in indices] for part, indices in parts.items()}
    about = {"format": SPLIT_FORMAT, "data": photos.name, "seed": 0, "classes": list(photos.classes)}
    splits = {part: dict.fromkeys(names, "0") for part, names in paths.items()}
    write_json(folder / "split.json", about | {"splits": splits})
    epochs = (("head", 1, 1e-3, 1.0), ("finetune", 1, 1e-4, 0.8), ("finetune", 2, 1e-5, 0.7))
    accuracies = {"train_accuracy": 0.7, "val_accuracy": 0.8, "seconds": 1.0}
    history = [
        {"stage": stage, "epoch": epoch, "lr": lr, "train_loss": loss, "val_loss": loss}
        | {"val_calibrated_loss": loss, **accuracies}
        for stage, epoch, lr, loss in epochs
    ]
    write_csv(folder / "history.csv", history)
    answers = {}
    generator = torch.Generator().manual_seed(0)
    for part in ("val", "test"):
        labels = torch.tensor([photos.labels[i] for i in parts[part]])
        logits = torch.randn(len(labels), 3, generator=generator)
        logits[torch.arange(len(labels)), labels] += 1.0
        answers[part] = Predictions(logits, labels, torch.empty(len(labels), 0))
    places = torch.randn(len(parts["test"]), 2, generator=generator)
    kept = {part: (paths[part], answers[part]) for part in answers}
    save_predictions(folder, photos.classes, 0.8, kept, places)
    test = score(answers["test"].logits / 0.8, answers["test"].labels)
    write_json(
        folder / "metrics.json",
        {
            "best_epoch": history[-1],
            "temperature": 0.8,
            "uncalibrated": {"loss": 1.0, "brier": 0.5, "calibration_error": 0.2},
            "test": test.to_dict(photos.classes),
        },
    )
