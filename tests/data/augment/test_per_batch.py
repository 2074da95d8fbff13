"""Augmentations of batches against torchvision and Keras, and their draws against statistics."""

import math

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import RandomResizedCrop
from torchvision.transforms.v2 import functional as tv

from flowers_torch.data.augment import per_batch as batch
from flowers_torch.data.augment.keras import Affine
from flowers_torch.data.augment.names import CROPS, KERAS
from flowers_torch.data.augment.per_batch import SampleGenerator


def random_images(count: int = 4, height: int = 24, width: int = 32) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0))


def generator(count: int = 4, seed: int = 0, epoch: int = 0) -> SampleGenerator:
    return SampleGenerator(seed, epoch, torch.arange(count))


def test_a_draw_depends_on_seed_epoch_and_position_only():
    one = SampleGenerator(3, 5, torch.tensor([7, 8, 9])).uniform(4)
    other_batch = SampleGenerator(3, 5, torch.tensor([100, 9, 7])).uniform(4)
    assert torch.equal(one[0], other_batch[2]) and torch.equal(one[2], other_batch[1])
    for seed, epoch in ((4, 5), (3, 6), (5, 3)):
        assert not torch.isin(SampleGenerator(seed, epoch, torch.tensor([7, 8, 9])).uniform(4), one).any()
    views = SampleGenerator(3, torch.tensor([5, 6, 5]), torch.tensor([7, 8, 9])).uniform(4)
    assert torch.equal(views[[0, 2]], one[[0, 2]]) and not torch.isin(views[1], one).any()
    again = SampleGenerator(3, 5, torch.tensor([7, 8, 9]))
    assert torch.equal(torch.cat([again.uniform(1), again.uniform(3)], 1), one)


def test_draws_are_uniform_and_independent():
    from scipy import stats  # two seconds of imports

    numbers = SampleGenerator(0, 0, torch.arange(20_000)).uniform(3)
    assert 0 <= numbers.min() and numbers.max() < 1
    for column in numbers.T:
        assert stats.kstest(column.numpy(), "uniform").pvalue > 1e-3
    later = SampleGenerator(0, 1, torch.arange(20_000)).uniform(1)
    everything = torch.cat([numbers, later, numbers[:, :1].roll(1, 0)], 1)
    correlations = torch.corrcoef(everything.T) - torch.eye(5)
    assert correlations.abs().max() < 0.03
    normal = SampleGenerator(1, 0, torch.arange(20_000)).normal(1)[:, 0]
    assert stats.kstest(normal.numpy(), "norm").pvalue > 1e-3


def test_splitmix64_is_the_published_one():
    """First outputs for the seeds 0 and 1 of the reference implementation."""
    found = [int(v) % 2**64 for v in batch._mix(torch.tensor([0, 1]))]
    assert found == [0xE220A8397B1DCDAF, 0x910A2DEC89025CC1]


def test_drawn_matrices_are_keras_on_squares():
    matrices = batch.draw_affines(generator(3), 20, 20, rotation=30, shift=0.2, shear=15, zoom=0.2)
    again = generator(3)
    theta, shear = again.uniform(1, -30, 30), again.uniform(1, -15, 15)
    ty, tx = again.uniform(1, -0.2, 0.2) * 20, again.uniform(1, -0.2, 0.2) * 20
    zy, zx = again.uniform(1, 0.8, 1.2), again.uniform(1, 0.8, 1.2)
    for i in range(3):
        values = [float(v[i, 0]) for v in (theta, tx, ty, shear, zx, zy)]
        np.testing.assert_allclose(matrices[i].numpy(), Affine(*values).matrix(20, 20), atol=1e-4)


def test_the_tutorials_shear_is_in_radians():
    """In the Keras of the tutorials, `shear_range=0.2` is 0.2 radians: a source is (x - sin(s) y, cos(s) y)."""
    matrices = batch.draw_affines(generator(2000), 20, 20, *KERAS["keras_zoom"])
    shear = (-matrices[:, 1, 0] / matrices[:, 0, 0]).atan().abs()  # of y in x and in y, times the zoom
    assert 0.19 < shear.max() <= 0.2 + 1e-6 and abs(shear.mean() - 0.1) < 0.01


def test_an_affine_without_ranges_changes_nothing():
    images = random_images()
    matrices = batch.draw_affines(generator(), 24, 32, 0, 0, 0, 0)
    torch.testing.assert_close(batch.affine(images, matrices), images, atol=1e-5, rtol=0)


def test_a_crop_of_everything_is_torchvisions_resize():
    images = random_images(2, 40, 40)
    whole = batch.resized_crop(images, 20, generator(2), (1, 1), (1, 1), torch.ones(2))
    torch.testing.assert_close(whole, tv.resize(images, [20, 20], antialias=False), atol=1e-5, rtol=0)


def shape_of_crops(views: torch.Tensor) -> torch.Tensor:
    """(left, top, width, height) of crops of an image whose red is x and whose green is y, both in 0..1."""
    size = views.shape[-1]
    left, top = views[:, 0, :, 0].mean(1), views[:, 1, 0].mean(1)
    width, height = views[:, 0, :, -1].mean(1) - left, views[:, 1, -1].mean(1) - top
    return torch.stack([left, top, width * size / (size - 1), height * size / (size - 1)], dim=1)


@pytest.mark.parametrize("wide", [1.0, 1.5, 0.5])
@pytest.mark.parametrize("augmentation", ["light", "crop"])
def test_crops_are_drawn_as_torchvision_draws_them(augmentation, wide):
    """The same distribution of position and size, from stretched images of any original shape."""
    scale, ratio = CROPS[augmentation]
    height, width = 96, round(96 * wide)
    x, y = (torch.arange(width) + 0.5) / width, (torch.arange(height) + 0.5) / height
    image = torch.stack([x.expand(height, -1), y[:, None].expand(-1, width), torch.zeros(height, width)])
    torch.manual_seed(0)
    expected = torch.stack([RandomResizedCrop(16, scale, ratio)(image) for _ in range(300)])
    resized = tv.resize(image, [64, 64]).expand(300, -1, -1, -1)
    aspects = torch.full((300,), width / height)
    ours = batch.resized_crop(resized, 16, generator(300), scale, ratio, aspects)
    expected_crops, our_crops = shape_of_crops(expected), shape_of_crops(ours)
    areas = our_crops[:, 2] * our_crops[:, 3]
    assert areas.max() < 1.03 and (wide != 1 or areas.min() > scale[0] - 0.03)
    levels = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95])
    difference = torch.quantile(our_crops, levels, 0) - torch.quantile(expected_crops, levels, 0)
    assert difference.abs().max() < 0.08


def test_a_crop_of_the_resized_image_is_that_crop_of_the_image():
    pixels = torch.rand(3, 9, 12, generator=torch.Generator().manual_seed(0))
    image = tv.resize(pixels, [180, 240], interpolation=tv.InterpolationMode.BICUBIC).clamp(0, 1)
    split = tv.resize(image[:, 60:160, 30:150], [64, 64])
    resized = tv.resize(image, [120, 120])[None]
    number = torch.ones(1, 1)
    ours = batch.cut(resized, 64, number * 60 / 80, number * 30 / 120, number * 100 / 180, number * 120 / 240)
    assert (ours[0] - split).abs().mean() < 0.01 and (ours[0] - split).abs().max() < 0.08


def test_a_random_crop_is_a_square_of_the_image():
    x = (torch.arange(80) + 0.5) / 80
    resized = torch.stack([x.expand(80, -1), x[:, None].expand(-1, 80), x.expand(80, -1)])
    by_split = shape_of_crops(
        batch.random_crop(resized.expand(200, -1, -1, -1), 20, generator(200), 0.75, torch.full((200,), 2.0))
    )
    torch.testing.assert_close(by_split[:, 2], torch.full((200,), 0.375), atol=0.01, rtol=0)
    torch.testing.assert_close(by_split[:, 3], torch.full((200,), 0.75), atol=0.01, rtol=0)
    assert by_split[:, 0].max() > 0.6 and by_split[:, 0].min() < 0.03 and 0.25 < by_split[:, 1].max() < 0.28


def test_mirror():
    images = random_images(400, 2, 2)
    mirrored = batch.mirror(images, generator(400))
    flipped = (mirrored == images.flip(-1)).flatten(1).all(1)
    unchanged = (mirrored == images).flatten(1).all(1)
    assert (flipped ^ unchanged).all() and 150 < flipped.sum() < 250


def test_color_is_torchvisions():
    images = random_images(3)
    factors = torch.tensor([[0.7, 1.2, 0.5], [1.3, 0.8, 1.4], [1.0, 1.0, 1.0]])
    ours = batch.adjust_color(images, *(factors[:, i, None, None, None] for i in range(3)))
    for image, (b, c, s), result in zip(images, factors.tolist(), ours, strict=True):
        expected = tv.adjust_saturation(tv.adjust_contrast(tv.adjust_brightness(image, b), c), s)
        torch.testing.assert_close(result, expected, atol=2e-3, rtol=0)
    jittered = batch.jitter_color(images, generator(3), (0.2, 0.2, 0.2))
    assert 0 < (jittered - images).abs().mean() < 0.2 and jittered.min() >= 0 and jittered.max() <= 1


def test_rgb_shift_moves_each_channel_as_a_whole():
    images = random_images(50) * 0.5 + 0.25
    shifts = batch.shift_rgb(images, generator(50), 0.1) - images
    assert shifts.std((2, 3)).max() < 1e-6 and 0.09 < shifts.abs().max() <= 0.1


def test_pca_color_has_alexnets_covariance():
    gray = torch.full((20_000, 3, 1, 1), 0.5)
    shifts = (batch.shift_pca_color(gray, generator(20_000), std=0.1) - 0.5)[:, :, 0, 0]
    vectors, values = torch.tensor(batch.PCA_VECTORS), torch.tensor(batch.PCA_VALUES)
    expected = vectors @ torch.diag((0.1 * values) ** 2) @ vectors.T
    torch.testing.assert_close(shifts.T.cov(), expected, atol=2e-5, rtol=0)
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(3), atol=2e-3, rtol=0)


def test_erase():
    images = random_images(300, 32, 32)
    erased = batch.erase(images, generator(300), probability=0.5)
    changed = (erased != images).any(1)
    areas = changed.float().mean((1, 2))
    assert 110 < (areas > 0).sum() < 190 and areas.max() < 0.25
    first = int((areas > 0).nonzero()[0])
    color = erased[first][:, changed[first]]
    torch.testing.assert_close(color, images[first].mean((1, 2))[:, None].expand_as(color))


def test_mixup_blends_images_and_targets():
    images = torch.stack([torch.zeros(3, 20, 20), torch.ones(3, 20, 20)])
    targets = torch.eye(2)
    mixed, blended = batch.mixup(images, targets, 0.7)
    assert torch.allclose(mixed[0], torch.tensor(0.3)) and torch.allclose(mixed[1], torch.tensor(0.7))
    assert torch.allclose(blended, torch.tensor([[0.7, 0.3], [0.3, 0.7]]))


def test_fractions_follow_a_beta_distribution():
    from scipy import stats

    fractions = [batch.draw_fraction(0.2, 0, 0, step) for step in range(2000)]
    assert stats.kstest(fractions, stats.beta(0.2, 0.2).cdf).pvalue > 1e-3
    assert batch.draw_fraction(1, 4, 5, 6) == batch.draw_fraction(1, 4, 5, 6) != batch.draw_fraction(1, 4, 5, 7)


def test_standardize():
    images, mean, std = random_images(), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    torch.testing.assert_close(batch.standardize(images, mean, std), tv.normalize(images, mean, std))


def test_mistakes():
    with pytest.raises(ValueError, match="fill mode"):
        batch.affine(random_images(), torch.zeros(4, 2, 3), "edge")
    assert math.isfinite(float(generator().normal(100).sum()))
