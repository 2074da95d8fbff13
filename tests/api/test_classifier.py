"""`Classifier`: what it takes, what it returns, from one thread and from many."""

import io
import random
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from flowers_torch import Classifier, Prediction, TrainResult
from flowers_torch.deploy import predictor as predictor_module
from flowers_torch.deploy.predictor import BATCHES_AHEAD
from flowers_torch.errors import DataError, UsageError
from flowers_torch.models.factory import create_model
from flowers_torch.models.heads import classifier_inputs, logits_and_features


@pytest.fixture(scope="module")
def classifier(trained: TrainResult) -> Classifier:
    return trained.classifier


def opened(path: Path) -> Image.Image:
    """An image that is not loaded, and whose file nobody needs to close."""
    return Image.open(io.BytesIO(path.read_bytes()))


def forms_of(path: Path) -> dict[str, Any]:
    """A photo as everything that is one image."""
    image = opened(path)
    pixels = np.asarray(image)
    tensor = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    return {
        "path": path, "text": str(path), "bytes": path.read_bytes(), "bytearray": bytearray(path.read_bytes()),
        "memory": memoryview(path.read_bytes()), "file": io.BytesIO(path.read_bytes()), "PIL": image,
        "array": pixels, "reversed strides": pixels[::-1][::-1], "tensor": tensor, "float array": pixels / 255,
        "float tensor": tensor / 255, "RGBA": image.convert("RGBA"), 
        "with alpha": np.dstack([pixels, 0 * pixels[:, :, 0] + 255]),
    }  # fmt: skip


def test_every_form_of_an_image_gives_the_same_prediction(classifier: Classifier, files: list[Path]) -> None:
    found = {name: classifier(image) for name, image in forms_of(files[3]).items()}
    expected = found["path"]
    for name, prediction in found.items():
        assert prediction.probabilities == expected.probabilities, name
        assert prediction.label == expected.label == "blue" and not prediction.error
    assert found["path"].file == str(files[3]) and found["array"].file == "the image"
    gray = np.asarray(Image.open(files[3]).convert("L"))
    assert classifier(gray).probabilities == classifier(gray[..., None]).probabilities


def test_several_images_give_a_list(classifier: Classifier, files: list[Path]) -> None:
    pixels = np.stack([np.asarray(Image.open(file)) for file in files[:5]])
    lists: list[Any] = [files[:5], [str(file) for file in files[:5]], pixels, (array for array in pixels)]
    lists += [torch.from_numpy(pixels).permute(0, 3, 1, 2), [files[0], *pixels[1:5]]]
    lists += [np.array([str(file) for file in files[:5]]), np.array(files[:5]), dict.fromkeys(files[:5])]
    lists += [[Response(file.read_bytes()) for file in files[:5]]]
    expected = [prediction.probabilities for prediction in classifier(lists[0])]
    for images in lists:
        assert [prediction.probabilities for prediction in classifier(images)] == expected
    folder = classifier(files[0].parent)
    assert len(folder) == 20 and len(classifier(f"{files[0].parent}/1?.png")) == 10
    assert classifier([]) == [] and [p.file for p in folder] == [str(file) for file in files[:20]]


class Upload:
    """An uploaded file of a web framework, whose methods are coroutines."""

    filename = "upload.png"

    async def read(self, size: int = -1) -> bytes:
        return b""


class Response(io.RawIOBase):
    """The body of a response, which cannot seek."""

    def __init__(self, content: bytes) -> None:
        self.file = io.BytesIO(content)

    def read(self, size: int = -1) -> bytes:
        return self.file.read(size)


@pytest.mark.parametrize(
    ("image", "problem"),
    [
        (np.zeros((3, 40, 48), np.uint8), "shape"),
        (np.zeros((40, 48, 3), np.int64), "int64"),
        (np.full((40, 48, 3), 200.0), "floats from 200"),
        (torch.randn(3, 32, 32), "floats from"),
        (torch.zeros(40, 48, 3, dtype=torch.uint8), "shape"),
        (np.zeros((0, 4, 3), np.uint8), "shape"),
        (b"nothing", "not an image"),
        (b"", "empty"),
        (io.BytesIO(b"<html>"), "web page"),
        ("no_such_photo.jpg", "no_such_photo"),
        (io.StringIO("text"), "not an open binary file"),
        (Upload(), "upload.png is not an open binary file"),
        (torch.zeros(3, 4, 4).to_sparse(), "tensor without plain values"),
        (torch.zeros(3, 4, 4, device="meta"), "tensor without plain values"),
    ],
)
def test_invalid_images_are_errors_with_a_fix(classifier: Classifier, image: Any, problem: str) -> None:
    with pytest.raises(DataError, match=f"{problem}.*; fix: "):
        classifier(image)
    (prediction,) = classifier([image])
    assert problem in prediction.error and not prediction.label


class DataFrame:
    """Whatever the library, a table is not a list of images."""


@pytest.mark.parametrize("images", [3, None, {"a": 1}.keys(), [[1, 2]], "", DataFrame()])
def test_other_things_are_refused(classifier: Classifier, images: Any) -> None:
    try:
        assert all(prediction.error for prediction in classifier(images))
    except UsageError as error:
        assert re.search("; fix: (give a path|name a file|give the column of the files)", str(error))


def test_phone_photos_are_upright_and_the_image_stays_as_it_is(classifier: Classifier, tmp_path: Path) -> None:
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[:, :40] = (190, 60, 50)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    turned = opened(tmp_path / "turned.png")
    upright = np.rot90(pixels, -1)
    expected = classifier(upright).probabilities
    assert classifier(turned).probabilities == classifier(tmp_path / "turned.png").probabilities == expected
    assert turned.size == (80, 40)


def test_large_images_are_read_as_their_files_are(classifier: Classifier, tmp_path: Path) -> None:
    """Also where a file is decoded at a smaller size, and where an image of many pixels is averaged."""
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.jpg")
    Image.fromarray(noise).resize((2400, 1800), Image.Resampling.NEAREST).save(tmp_path / "b.png", compress_level=1)
    for name in ("a.jpg", "b.png"):
        path, image = tmp_path / name, opened(tmp_path / name)
        expected = classifier.predict_proba(path)
        with path.open("rb") as file, Image.open(path) as of_a_file:
            for form in (path.read_bytes(), io.BytesIO(path.read_bytes()), image, file, of_a_file):
                assert torch.equal(classifier.predict_proba(form), expected), name
        assert image.tile  # it was not loaded
        with pytest.raises(DataError, match="the image is too large: "):
            classifier.predictor.read(image, "the image", 100)
    image.load()
    for form in (image, np.asarray(image), np.asarray(image) / 255):
        assert torch.equal(classifier.predict_proba(form), expected)
    draft, loaded = opened(tmp_path / "a.jpg"), opened(tmp_path / "a.jpg")
    draft.draft("L", (100, 100))
    loaded.load()
    assert torch.equal(classifier.predict_proba(loaded), classifier.predict_proba(np.asarray(loaded)))
    assert torch.equal(classifier.predict_proba(draft), classifier.predict_proba(np.asarray(draft)))


def test_probabilities_features_and_explanations(classifier: Classifier, files: list[Path]) -> None:
    probabilities, features = classifier.predict_proba(files[:3]), classifier.embed(files[:3])
    assert probabilities.shape == (3, 3) and torch.allclose(probabilities.sum(1), torch.ones(3))
    assert features.shape[0] == 3 and classifier.embed(files[0]).shape == features.shape[1:]
    assert torch.allclose(classifier.predict_proba(files[0]), probabilities[0], atol=1e-5)
    best = classifier.predict(files[0], top=1)
    assert len(best.classes) == 1 and best.probability == pytest.approx(float(probabilities[0].max()), abs=1e-5)
    with torch.no_grad():
        logits = classifier.network.get_classifier()(features)  # type: ignore[operator]
    assert torch.allclose((logits / classifier.info.temperature).softmax(1), probabilities, atol=1e-5)
    assert classifier.explain(files[0]).size == (32, 32)
    with pytest.raises(DataError, match="missing.png"):
        classifier.embed([files[0], "missing.png"])


def test_a_largest_error_rate_makes_it_abstain(classifier: Classifier, files: list[Path]) -> None:
    with pytest.raises(UsageError, match=r"^max_error=0.001 cannot be promised"):
        classifier.predict(files, max_error=0.001)
    with pytest.raises(UsageError, match=r"max_error=7 is not a fraction; fix: use a value such as max_error=0.02"):
        classifier.predict(files, max_error=7)
    with pytest.raises(UsageError, match=r"^coverage=0.999 cannot be promised: it takes 999 validation photos"):
        classifier.predict(files, coverage=0.999)
    with pytest.raises(UsageError, match=r"coverage=1.5 is not a fraction; fix: use a value such as coverage=0.95"):
        classifier.predict(files, coverage=1.5)
    assert all(prediction.label in prediction.set for prediction in classifier.predict(files, coverage=0.5))
    found = classifier.predict(files, max_error=0.5)
    assert {prediction.abstained for prediction in found} <= {True, False} and len(found) == 60


def test_one_line_of_text(classifier: Classifier, trained: TrainResult) -> None:
    for shown in (repr(classifier), repr(trained), repr(classifier.evaluate())):
        assert "\n" not in shown and len(shown) < 300
    assert "test_resnet, 3 classes (blue, green, red), 32 px on cpu" in repr(classifier)


def test_saved_and_loaded(classifier: Classifier, files: list[Path], tmp_path: Path) -> None:
    again = Classifier.load(classifier.save(tmp_path / "colors.safetensors"), "cpu")
    assert again.info == classifier.info and again(files[0]).probabilities == classifier(files[0]).probabilities
    with pytest.raises(UsageError, match="a weights file has no test photos"):
        again.evaluate()
    with pytest.raises(UsageError, match="there is no run nowhere"):
        Classifier.load("nowhere")


def test_evaluation_on_its_own_and_on_other_photos(
    classifier: Classifier, trained: TrainResult, photo_folder: Path, files: list[Path]
) -> None:
    own = classifier.evaluate()
    assert own.accuracy == trained.accuracy and own.interval == trained.interval
    other = classifier.evaluate(photo_folder)
    by_list = classifier.evaluate((files, [file.parent.name for file in files]))
    assert len(other.rows) == len(by_list.rows) == 60 and other.known == by_list.known == 48
    assert other.scores.accuracy == by_list.scores.accuracy
    for options, problem in (({"views": "crop7"}, 'views="crop7" is not'), ({"split": "dev"}, 'split="dev" is not')):
        for data in (None, photo_folder):
            with pytest.raises(UsageError, match=problem):
                classifier.evaluate(data, **options)
    with pytest.raises(DataError, match="no class purple"):
        classifier.evaluate((files[:2], ["purple", "blue"]))


def test_an_export_option_that_does_not_exist(classifier: Classifier) -> None:
    with pytest.raises(UsageError, match="int4 is not an option of export"):
        classifier.export(int4=True)
    with pytest.raises(UsageError, match='format="onnyx" is not a valid format'):
        classifier.export("onnyx")
    with pytest.raises(UsageError, match='int8 does not apply to format="safetensors"|int8=True'):
        classifier.export("safetensors", int8=True)


def everything(classifier: Classifier, image: Any, number: int) -> tuple[Any, ...]:
    """What one call returns, as values to compare."""
    match number % 4:
        case 0:
            return classifier(image).probabilities
        case 1:
            return tuple(classifier.embed(image).tolist())
        case 2:
            return tuple(classifier.predict_proba([image, image]).flatten().tolist())
        case _:
            return (classifier.explain(image).tobytes(),)


def assert_threads_agree(classifier: Classifier, images: list[Any], calls: int) -> None:
    jobs = [(images[number % len(images)], number) for number in range(calls)]
    alone = {(number % len(images), number % 4): everything(classifier, image, number) for image, number in jobs[:80]}
    random.Random(0).shuffle(jobs)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda job: everything(classifier, *job), jobs))
    for (_, number), result in zip(jobs, found, strict=True):
        assert result == alone[number % len(images), number % 4], f"call {number}"


def test_eight_threads_get_the_bits_of_one(classifier: Classifier, files: list[Path]) -> None:
    shared = opened(files[4])  # not loaded yet
    assert_threads_agree(classifier, [*files[:3], files[3].read_bytes(), shared], 80)


@pytest.mark.slow
def test_a_thousand_calls_from_eight_threads(classifier: Classifier, files: list[Path]) -> None:
    assert_threads_agree(classifier, files[:20], 1000)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("test_resnet", 32), ("test_vit", 160), ("lenet5_relu", 32), ("cifar_resnet", 32), ("levit_128s", 224),
        ("mobilenetv3_small_050", 64), ("deit_tiny_distilled_patch16_224", 224),
    ],
)  # fmt: skip
def test_features_without_a_hook_are_what_enters_the_classifier(name: str, size: int) -> None:
    torch.manual_seed(0)
    model, images = create_model(name, 3, size=size).eval(), torch.randn(2, 3, size, size)
    with torch.inference_mode():
        with classifier_inputs(model) as entered:
            expected = model(images)
        logits, features = logits_and_features(model, images)
    assert torch.equal(logits, expected)
    torch.testing.assert_close(features, entered[0], rtol=0, atol=1e-6)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_photos_are_read_ahead_but_not_all(classifier: Classifier, files: list[Path]) -> None:
    taken = []

    def frames() -> Iterator[Any]:
        for number in range(200):
            taken.append(number)
            yield files[number % 60]

    predictions = classifier.stream(frames(), batch_size=4)
    for number, prediction in enumerate(predictions):
        assert isinstance(prediction, Prediction) and prediction.file == str(files[number % 60])
        assert len(taken) <= number + 4 * (BATCHES_AHEAD + 2)
        if number == 50:
            break
    predictions.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("reader")]


def test_threads_read_while_the_network_computes(
    classifier: Classifier, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first batch is computed only after a photo of the second one is being read."""
    reading_second, real = threading.Event(), predictor_module.open_image
    computed = []

    def read(source: Any, *arguments: Any) -> Image.Image:
        if source == files[5]:
            reading_second.set()
        return real(source, *arguments)

    def compute(inputs: Any, *arguments: Any) -> Any:
        computed.append(reading_second.wait(20))
        return [Prediction("", ("blue",), (1.0,))] * len(inputs)

    monkeypatch.setattr(predictor_module, "open_image", read)
    monkeypatch.setattr(classifier.predictor, "classify", compute)
    assert len(list(classifier.stream(files[:8], batch_size=4))) == 8
    assert computed == [True, True]


def test_bad_photos_cost_only_themselves(classifier: Classifier, files: list[Path], tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"nothing")
    mixed = [files[0], tmp_path / "bad.jpg", files[1], b"", *files[2:6]]
    found = classifier.predict(mixed, batch_size=3)
    assert [bool(prediction.error) for prediction in found] == [False, True, False, True, *[False] * 4]
    for image, prediction in zip(mixed, found, strict=True):
        if not prediction.error:
            assert prediction.probabilities == pytest.approx(classifier(image).probabilities, abs=1e-5)
    assert all(prediction.error for prediction in classifier([b"", b"x"]))
