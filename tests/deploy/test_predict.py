"""One preprocessing path: validation, prediction and plain PyTorch give the same logits."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flowers_torch.data.augment import train_transform
from flowers_torch.data.loaders import PhotoDataset, make_loader
from flowers_torch.deploy.predict import Classifier, find_files
from flowers_torch.errors import UsageError
from flowers_torch.models.classifier import Record, build, save_classifier
from flowers_torch.models.zoo import Preprocessing
from flowers_torch.training.engine import predict_logits
from flowers_torch.training.runtime import Runtime

RECORD = Record(
    "test_resnet", ("blue", "green", "red"), Preprocessing(size=64, mean=(0.5,) * 3, std=(0.5,) * 3, crop=0.8)
)
FP32 = Runtime(torch.device("cpu"), "fp32", "for a test")


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_classifier(build(RECORD).state_dict(), RECORD, path)
    return path


def test_validation_prediction_and_plain_pytorch_agree(photo_folder: Path, model_file: Path) -> None:
    photos = sorted(photo_folder.rglob("*.png"))[:7]
    classifier = Classifier.load(model_file, FP32)
    predicted = classifier.logits(photos)

    transform = train_transform("none", **dataclasses.asdict(RECORD.preprocessing))
    loader, _ = make_loader(PhotoDataset(photos, [0] * 7, transform, seed=0), 7, shuffle=False)
    validated, _ = predict_logits(classifier.model, loader, FP32)
    assert torch.equal(predicted, validated)

    torch.manual_seed(0)
    network = build(RECORD).eval()
    resized = [Image.open(p).convert("RGB").resize((96, 80), Image.Resampling.BICUBIC) for p in photos]
    pixels = np.stack([np.asarray(image)[8:72, 16:80] for image in resized]).astype(np.float32) / 255
    plain = network(torch.from_numpy((pixels - 0.5) / 0.5).permute(0, 3, 1, 2))
    assert torch.allclose(predicted, plain, atol=1e-4)


def test_bad_photos_are_answered_with_a_reason_among_good_ones(
    photo_folder: Path, model_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"nothing")
    good = sorted(photo_folder.rglob("*.png"))
    classifier = Classifier.load(model_file, FP32)
    mixed = [good[0], tmp_path / "bad.jpg", good[1], good[2]]
    answers = list(classifier.predict(mixed, top=5, batch_size=2))
    assert [answer.file for answer in answers] == [str(path) for path in mixed]
    assert "bad.jpg" in answers[1].error and not answers[1].classes
    alone = [next(iter(classifier.predict([path], top=5))) for path in good[:3]]
    for answer, other in zip([answers[0], *answers[2:]], alone, strict=True):
        assert answer.classes == other.classes
        assert answer.probabilities == pytest.approx(other.probabilities, abs=1e-5)
        assert len(answer.classes) == 3 and sum(answer.probabilities) == pytest.approx(1)


def test_files_folders_and_globs(photo_folder: Path, tmp_path: Path) -> None:
    red = photo_folder / "red"
    assert len(find_files([str(photo_folder)])) == 60
    assert find_files([f"{red}/1?.png", str(red / "3.png"), str(red / "10.png")]) == [
        *sorted(red.glob("1?.png")),
        red / "3.png",
    ]
    for nothing in (str(tmp_path), f"{red}/*.gif", "no_such_file.jpg"):
        with pytest.raises(UsageError, match="no photo at"):
            find_files([nothing])
