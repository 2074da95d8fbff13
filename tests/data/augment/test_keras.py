"""Parity with the output of Keras 3.15 in the folder golden, and the random draws."""

import json
from pathlib import Path

import numpy as np
import pytest

from flowers_torch.data.augment.keras import (
    Affine,
    KerasAugment,
    Standardizer,
    change_brightness,
    preprocess_input,
    shift_channels,
)
from flowers_torch.data.augment.per_batch import FILL_MODES

GOLDEN = Path(__file__).parent / "golden"
CASES = json.loads((GOLDEN / "image_data_generator.json").read_text())


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "image_data_generator.npz") as content:
        return {name: content[name] for name in content.files}


@pytest.mark.parametrize("k", range(len(CASES)))
def test_affine_is_keras(golden, k):
    case = dict(CASES[k])
    fill_mode, cval = case.pop("fill_mode"), case.pop("cval")
    ours = Affine(**case).apply(golden["image_uint8"], fill_mode, cval)
    close = np.abs(ours - golden[f"affine_{k}"]).max(axis=2) <= 1
    assert close.mean() >= 0.999
    assert np.abs(ours - golden[f"affine_{k}"]).mean() < 0.02


def test_all_fill_modes_are_in_the_golden_file():
    assert {case["fill_mode"] for case in CASES} == set(FILL_MODES)


def test_channel_shift_and_brightness_are_keras(golden):
    image = golden["image_uint8"].astype(np.float32)
    np.testing.assert_allclose(shift_channels(image, 25), golden["channel_shift_25"], atol=1e-3)
    assert np.abs(change_brightness(image, 0.7) - golden["brightness_0.7"]).max() <= 1


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("featurewise", {"featurewise_center": True, "featurewise_std": True}),
        ("samplewise", {"samplewise_center": True, "samplewise_std": True}),
        ("zca", {"featurewise_center": True, "zca_epsilon": 1e-2}),
    ],
)
def test_standardizing_is_keras(golden, name, options):
    images = golden["set_8x8_uint8"]
    scale = Standardizer(rescale=1 / 255, **options).fit(images)
    ours = np.stack([scale(image) for image in images])
    np.testing.assert_allclose(ours, golden[f"{name}_out"], atol=1e-4)


def test_zca_whitens():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(500, 4, 4, 1)).cumsum(axis=1)
    scale = Standardizer(featurewise_center=True, zca_epsilon=1e-6).fit(images)
    flat = np.stack([scale(image).ravel() for image in images])
    np.testing.assert_allclose(flat.T @ flat / 500, np.eye(16), atol=1e-3)


def test_standardizing_before_fit_is_an_error():
    with pytest.raises(ValueError, match="fit"):
        Standardizer(featurewise_center=True)(np.zeros((2, 2, 3)))


def test_preprocessing_modes():
    pixel = np.array([[255, 0, 127.5]])
    np.testing.assert_allclose(preprocess_input(pixel, "tf"), [[1, -1, 0]], atol=1e-6)
    np.testing.assert_allclose(preprocess_input(pixel, "caffe"), [[23.561, -116.779, 131.32]], atol=1e-3)
    np.testing.assert_allclose(preprocess_input(pixel, "torch"), [[2.2489, -2.0357, 0.4179]], atol=1e-3)
    with pytest.raises(ValueError, match="tf, caffe, torch"):
        preprocess_input(pixel, "keras")


def test_draws_stay_within_their_ranges_and_fill_them():
    augment = KerasAugment(
        rotation_range=30, width_shift_range=0.2, height_shift_range=5, shear_range=10, zoom_range=0.2
    )
    generator = np.random.default_rng(0)
    draws = [augment.draw_affine(generator, 50, 100) for _ in range(400)]
    for name, limit, center in [
        ("theta", 30, 0),
        ("tx", 20, 0),
        ("ty", 5, 0),
        ("shear", 10, 0),
        ("zx", 0.2, 1),
    ]:
        values = np.array([getattr(draw, name) for draw in draws]) - center
        assert np.abs(values).max() <= limit and values.max() > 0.9 * limit and values.min() < -0.9 * limit
    assert any(abs(draw.zx - draw.zy) > 0.1 for draw in draws)


def test_the_whole_augmentation_is_a_function_of_the_generator(golden):
    image = golden["image_uint8"]
    augment = KerasAugment(30, 0.2, 0.2, 10, (0.8, 1.2), 20, (0.5, 1.5), True, True, fill_mode="reflect")
    first, again, other = (augment(image, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first.shape == image.shape and first.dtype == np.float32
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    np.testing.assert_allclose(KerasAugment()(image, np.random.default_rng(0)), image, atol=0.01)


def test_flips():
    image = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    flipped = [KerasAugment(horizontal_flip=True)(image, np.random.default_rng(s)) for s in range(20)]
    mirrored = sum(np.allclose(f, image[:, ::-1], atol=0.01) for f in flipped)
    assert 4 < mirrored < 16 and mirrored + sum(np.allclose(f, image, atol=0.01) for f in flipped) == 20
    upside = KerasAugment(vertical_flip=True)
    assert any(np.allclose(upside(image, np.random.default_rng(s)), image[::-1], atol=0.01) for s in range(10))


def test_unknown_fill_mode():
    with pytest.raises(ValueError, match="constant, nearest, reflect, wrap"):
        Affine().apply(np.zeros((2, 2, 3)), "mirror")
