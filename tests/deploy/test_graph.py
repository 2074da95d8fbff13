"""The exported module: preprocessing, logits, probabilities and the OOD distance."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from flowers_torch.data.augment.per_image import eval_transform
from flowers_torch.data.preprocessing import Preprocessing
from flowers_torch.deploy.graph import ExportableClassifier, Preprocess
from flowers_torch.evaluation.selective import fit_ood_detector, pack_selective, read_ood_detector
from flowers_torch.models.checkpoint import ModelInfo, build

USUAL = Preprocessing(size=48, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), crop=0.8)


def waves(width: int, height: int) -> Image.Image:
    """Waves and noise, so that every pixel depends on the resize filter and its position."""
    rows, columns = np.mgrid[0:height, 0:width]
    values = 127 + 100 * np.sin(columns / 7) * np.cos(rows / 11)
    noise = np.random.default_rng(0).normal(0, 25, (height, width, 3))
    return Image.fromarray(np.clip(values[..., None] + noise, 0, 255).astype(np.uint8))


@pytest.mark.parametrize("size", [(100, 75), (75, 100), (61, 60), (60, 60), (300, 40), (31, 400), (1, 9), (7, 5)])
@pytest.mark.parametrize(
    "preprocessing",
    [
        USUAL,
        dataclasses.replace(USUAL, interpolation="bilinear", crop=0.875),
        dataclasses.replace(USUAL, size=33, crop=1.0),
        dataclasses.replace(USUAL, stretch=True),
    ],
    ids=["usual", "bilinear", "odd", "stretch"],
)
def test_photos_are_prepared_as_for_validation(size: tuple[int, int], preprocessing: Preprocessing) -> None:
    """PyTorch's filter is within two gray levels of Pillow's; a shift of one pixel would give 50.

    Pillow resizes the columns of tall images first and both clip in between, so some noise differs more.
    """
    image = waves(*size)
    expected = eval_transform(**preprocessing.transform_options())(image)
    found = Preprocess(preprocessing)(torch.from_numpy(np.array(image)[None]))[0]
    levels = (found - expected).abs() * torch.tensor(preprocessing.std)[:, None, None] * 255
    assert found.shape == expected.shape
    assert float(levels.quantile(0.998)) < 2.01 and float(levels.max()) < 8 and float(levels.mean()) < 0.5


def test_logits_and_probabilities() -> None:
    torch.manual_seed(0)
    info = ModelInfo("cifar_resnet", ("a", "b", "c"), USUAL, temperature=0.5, model_options={"depth": 8})
    network = build(info).eval()
    images = torch.randn(3, 3, 48, 48)
    with torch.inference_mode():
        logits, probabilities = ExportableClassifier(network, info)(images)
        assert torch.equal(logits, network(images))
    torch.testing.assert_close(probabilities, (logits * 2).softmax(1))
    assert ExportableClassifier(network, info).outputs == ["logits", "probabilities"]


def test_the_ood_distance_is_that_of_the_detector() -> None:
    torch.manual_seed(0)
    train, labels = torch.randn(8, 64), torch.arange(8) % 2
    selective = pack_selective([(0.9, 4, 0)], fit_ood_detector(train, labels, torch.randn(8, 64)))
    info = ModelInfo("cifar_resnet", ("a", "b"), USUAL, selective=selective, model_options={"depth": 8})
    network = build(info).eval()
    images = torch.randn(3, 3, 48, 48)
    model = ExportableClassifier(network, info)
    with torch.inference_mode():
        outputs = dict(zip(model.outputs, model(images), strict=True))
        features = network.forward_head(network.forward_features(images), pre_logits=True).flatten(1)  # type: ignore[operator]
    detector = read_ood_detector(selective)
    assert detector is not None
    torch.testing.assert_close(outputs["ood_distance"], detector.distance(features))
