"""Test-time augmentation."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from flowers_torch.data.augment.per_image import eval_transform
from flowers_torch.data.preprocessing import Preprocessing
from flowers_torch.evaluation.evaluate import VIEWS, collect_views, view_transform
from flowers_torch.evaluation.predictions import collect
from flowers_torch.models.factory import create_model
from flowers_torch.training.device import Runtime

FP32 = Runtime(torch.device("cpu"), "fp32", "for a test")
PLAIN = Preprocessing(size=32, mean=(0.5,) * 3, std=(0.5,) * 3)


def image(width: int = 60, height: int = 44) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("stretch", [False, True])
@pytest.mark.parametrize("crop", [0.875, 1.0])
@pytest.mark.parametrize("name", VIEWS)
def test_shapes(name: str, crop: float, stretch: bool) -> None:
    preprocessing = dataclasses.replace(PLAIN, crop=crop, stretch=stretch)
    views = view_transform(name, preprocessing)(image())
    assert views.shape == (VIEWS[name], 3, 32, 32)
    flat = views.flatten(1)
    assert len({tuple(row.tolist()) for row in flat}) == VIEWS[name]  # all views differ
    if name in ("none", "flip", "scales"):
        assert torch.equal(views[0], eval_transform(**preprocessing.transform_options())(image()))


def test_mirror_images() -> None:
    views = view_transform("crop10", PLAIN)(image())
    assert torch.equal(views[5:], views[:5].flip(3))


def test_the_prediction_is_the_mean_probability() -> None:
    torch.manual_seed(0)
    model = create_model("test_resnet", 3, size=32)
    views = torch.randn(4, 2, 3, 32, 32)
    labels = torch.tensor([0, 1, 2, 0])
    found = collect_views(model, [(views[:3], labels[:3]), (views[3:], labels[3:])], 2, FP32)
    each = [collect(model, [(views[:, v], labels)], FP32) for v in range(2)]
    mean = torch.stack([predictions.logits.softmax(1) for predictions in each]).mean(0)
    assert torch.allclose(found.logits.softmax(1), mean, atol=1e-5)
    assert torch.equal(found.labels, labels)
    assert torch.allclose(found.features, each[0].features, atol=1e-5)
