"""Classification of files: validation, prediction and plain PyTorch give the same logits."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flowers_torch.commands.predict import _to_text
from flowers_torch.data.augment.per_image import eval_transform
from flowers_torch.data.loading.loaders import TransformedImages, make_loader
from flowers_torch.data.preprocessing import Preprocessing
from flowers_torch.deploy.inputs import find_files, find_inputs
from flowers_torch.deploy.predictor import LOW_CONFIDENCE, OUT_OF_DISTRIBUTION, Prediction, Predictor
from flowers_torch.errors import ResourceError, UsageError
from flowers_torch.evaluation.predictions import collect
from flowers_torch.evaluation.selective import fit_ood_detector, pack_selective
from flowers_torch.models.checkpoint import ModelInfo, build, save_classifier
from flowers_torch.training.device import Runtime
from flowers_torch.training.step import predict_logits

INFO = ModelInfo(
    "test_resnet", ("blue", "green", "red"), Preprocessing(size=64, mean=(0.5,) * 3, std=(0.5,) * 3, crop=0.8)
)
FP32 = Runtime(torch.device("cpu"), "fp32", "for a test")


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_classifier(build(INFO).state_dict(), INFO, path)
    return path


def test_validation_prediction_and_plain_pytorch_agree(photo_folder: Path, model_file: Path) -> None:
    files = sorted(photo_folder.rglob("*.png"))[:7]
    predictor = Predictor.load(model_file, FP32)
    predicted = predictor.logits(files)

    transform = eval_transform(**INFO.preprocessing.transform_options())
    loader, _ = make_loader(TransformedImages(files, [0] * 7, transform, seed=0), 7, shuffle=False)
    validated, _ = predict_logits(predictor.inference_network, loader, FP32)
    assert torch.equal(predicted, validated)
    unfused, _ = predict_logits(predictor.network, loader, FP32)
    torch.testing.assert_close(predicted, unfused, rtol=1e-4, atol=1e-5)

    torch.manual_seed(0)
    network = build(INFO).eval()
    resized = [Image.open(p).convert("RGB").resize((96, 80), Image.Resampling.BICUBIC) for p in files]
    pixels = np.stack([np.asarray(image)[8:72, 16:80] for image in resized]).astype(np.float32) / 255
    plain = network(torch.from_numpy((pixels - 0.5) / 0.5).permute(0, 3, 1, 2))
    assert torch.allclose(predicted, plain, atol=1e-4)


def test_bad_images_get_an_error_among_good_ones(photo_folder: Path, model_file: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"nothing")
    good = sorted(photo_folder.rglob("*.png"))
    predictor = Predictor.load(model_file, FP32)
    mixed = [good[0], tmp_path / "bad.jpg", good[1], good[2]]
    predictions = list(predictor.predict(mixed, top=5, batch_size=2))
    assert [prediction.file for prediction in predictions] == [str(path) for path in mixed]
    assert "bad.jpg" in predictions[1].error and not predictions[1].classes
    alone = [next(iter(predictor.predict([path], top=5))) for path in good[:3]]
    for prediction, other in zip([predictions[0], *predictions[2:]], alone, strict=True):
        assert prediction.classes == other.classes
        assert prediction.probabilities == pytest.approx(other.probabilities, abs=1e-5)
        assert len(prediction.classes) == 3 and sum(prediction.probabilities) == pytest.approx(1)


def test_files_folders_and_globs(photo_folder: Path, tmp_path: Path) -> None:
    red = photo_folder / "red"
    assert len(find_files([str(photo_folder)])) == 60
    assert find_files([f"{red}/1?.png", str(red / "3.png"), str(red / "10.png")]) == [
        *sorted(red.glob("1?.png")),
        red / "3.png",
    ]
    for name in ("a/1.jpg", "a/._1.jpg", "__MACOSX/a/1.jpg", ".trash/2.jpg", "a/Thumbs.db"):
        (tmp_path / "some" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "some" / name).touch()
    assert find_files([str(tmp_path / "some")]) == [tmp_path / "some/a/1.jpg"]
    (tmp_path / "none").mkdir()
    for nothing in (str(tmp_path / "none"), f"{red}/*.gif", "no_such_file.jpg"):
        with pytest.raises(UsageError, match="no photo at"):
            find_files([nothing])


def test_the_temperature_of_the_file_is_applied(photo_folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = tmp_path / "model.safetensors"
    info = dataclasses.replace(INFO, temperature=0.5)
    save_classifier(build(info).state_dict(), info, path)
    predictor = Predictor.load(path, FP32)
    file = photo_folder / "red" / "3.png"
    (prediction,) = predictor.predict([file], top=3)
    expected = (predictor.logits([file])[0] / 0.5).softmax(0).sort(descending=True).values
    assert prediction.probabilities == pytest.approx(expected.tolist(), abs=1e-5)


def test_abstention(photo_folder: Path, model_file: Path) -> None:
    """The detector is fitted on red and green images, so blue ones are out of distribution."""
    model = Predictor.load(model_file, FP32).network
    known = [*sorted((photo_folder / "red").glob("*.png")), *sorted((photo_folder / "green").glob("*.png"))]
    labels = torch.arange(2).repeat_interleave(20)
    transform = eval_transform(**INFO.preprocessing.transform_options())
    loader, _ = make_loader(TransformedImages(known, labels.tolist(), transform, seed=0), 20, shuffle=False)
    features = collect(model, loader, FP32).features
    detector = fit_ood_detector(features[::2], labels[::2], features[1::2])
    detector = dataclasses.replace(detector, threshold=detector.threshold + 0.1)
    selective = pack_selective([(0.9, 10, 0), (0.5, 20, 4)], detector)
    predictor = Predictor(model, dataclasses.replace(INFO, selective=selective), FP32)
    assert {prediction.reason for prediction in predictor.predict(known)} == {""}
    ood = predictor.predict(sorted((photo_folder / "blue").glob("*.png")))
    assert {prediction.reason for prediction in ood} == {OUT_OF_DISTRIBUTION}
    assert next(predictor.predict(known[:1], confidence_threshold=0.999)).reason == LOW_CONFIDENCE
    assert predictor.threshold(0.1).probability == pytest.approx(0.9)


def test_sets_of_classes(photo_folder: Path, model_file: Path) -> None:
    info = dataclasses.replace(INFO, selective={"sets": {"images": 39, "quantiles": [[0.2, 1], [0.4, 2], [0.6, 4]]}})
    predictor = Predictor(Predictor.load(model_file, FP32).network, info, FP32)
    assert predictor.set_threshold(0.95) == 0.4 and predictor.set_threshold(0.97) == 0.2
    with pytest.raises(
        UsageError, match="--coverage 0.99 cannot be promised: it takes 99 validation photos, there are 39"
    ):
        predictor.set_threshold(0.99)
    photos = sorted((photo_folder / "red").glob("*.png"))
    assert all(not prediction.set and "set" not in prediction.to_dict() for prediction in predictor.predict(photos[:2]))
    for prediction in predictor.predict(photos, top=3, set_threshold=0.3):
        pairs = zip(prediction.classes, prediction.probabilities, strict=True)
        expected = [name for name, probability in pairs if probability >= 0.3] or [prediction.label]
        assert list(prediction.set) == expected == prediction.to_dict()["set"]


def test_a_set_of_one_class_is_not_printed_beside_it() -> None:
    one = Prediction("a.jpg", ("rose",), (0.9,), set=("rose",))
    assert _to_text(one, abstains=False) == "a.jpg: rose 0.900"
    two = dataclasses.replace(one, set=("rose", "iris"))
    assert _to_text(two, abstains=False) == "a.jpg: rose 0.900; one of: rose, iris"


def test_an_explanation_shows_the_input_of_the_network(photo_folder: Path, model_file: Path) -> None:
    heatmap = Predictor.load(model_file, FP32).explain(photo_folder / "red" / "3.png")
    assert heatmap.size == (64, 64) and np.asarray(heatmap).std() > 1


def test_urls_are_fetched_and_failures_are_errors(
    photo_folder: Path, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = photo_folder / "red" / "3.png"

    def fetch(url: str) -> bytes:
        if "gone" in url:
            raise ResourceError(f"cannot fetch {url}: not found")
        return file.read_bytes() if url.endswith(".png") else b"<html>"

    monkeypatch.setattr("flowers_torch.deploy.inputs.fetch_bytes", fetch)
    inputs = find_inputs(["https://x.org/a.png", str(file), "http://x.org/gone.png", "https://x.org/page"])
    web, local, gone, page = Predictor.load(model_file, FP32).predict(inputs)
    assert web.probabilities == pytest.approx(local.probabilities, abs=1e-6) and web.file.endswith("a.png")
    assert "not found" in gone.error and "https://x.org/page is not an image" in page.error
