"""Tests of `evaluation.mirroring`: when a mirror exchanges classes, and when too little is known."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from flowers_torch.evaluation.mirroring import ALPHA, _upper_tail, compare_mirrored, gradient_features, side_by_side

Case = tuple[Tensor, Tensor, Tensor]


def features(counts: list[int], seed: int, separation: float = 4.0, width: int = 12) -> Case:
    """Noise around a center for each class, and the same images with other noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor([label for label, count in enumerate(counts) for _ in range(count)])
    centers = separation * torch.randn(len(counts), width, generator=generator)
    plain, mirrored = (centers[labels] + torch.randn(len(labels), width, generator=generator) for _ in range(2))
    return plain, mirrored, labels


def exchanged(case: Case, first: int, second: int, every: int = 1) -> Case:
    """With the mirror images of two classes, or of every nth image of them, exchanged."""
    plain, mirrored, labels = case
    mirrored = mirrored.clone()
    a, b = ((labels == label).nonzero()[::every, 0] for label in (first, second))
    count = min(len(a), len(b))
    mirrored[a[:count]], mirrored[b[:count]] = mirrored[b[:count]], mirrored[a[:count]].clone()
    return plain, mirrored, labels


@pytest.mark.parametrize("counts", [[16, 16], [12] * 6, [150, 150], [12] * 43])
def test_exchanged_classes_are_found(counts: list[int]) -> None:
    last = len(counts) - 1
    found = compare_mirrored(*exchanged(features(counts, seed=1), 0, last))
    assert found.exchanges_classes and found.is_conclusive
    assert found.pair == (0, last) and found.exchanged >= 0.9 * found.of_pair


@pytest.mark.parametrize("counts", [[16, 16], [16] * 5, [150, 150], [12] * 43])
@pytest.mark.parametrize("separation", [0.0, 0.5, 4.0])
def test_there_are_no_false_alarms(counts: list[int], separation: float) -> None:
    for seed in range(3):
        assert not compare_mirrored(*features(counts, seed, separation)).exchanges_classes


def test_less_than_half_exchanges_nothing() -> None:
    """As where a third of the photos of a class show it from the other side."""
    found = compare_mirrored(*exchanged(features([90, 90], seed=2), 0, 1, every=3))
    assert found.changed > 40 and not found.exchanges_classes and found.is_conclusive


def test_classes_that_guesses_tell_apart_are_not_conclusive() -> None:
    assert not compare_mirrored(*features([20, 20], seed=3, separation=0.0)).is_conclusive
    assert not compare_mirrored(*features([2] * 30, seed=3)).is_conclusive  # 435 pairs of four images
    assert compare_mirrored(*features([20, 20], seed=3)).is_conclusive


@pytest.mark.parametrize("counts", [[100, 100], [140, 60]])
def test_mirror_images_that_look_like_nothing_known_exchange_nothing(counts: list[int]) -> None:
    """All of them are recognized as one class, which can be the smaller one."""
    plain, mirrored, labels = features(counts, seed=5)
    for guess in (0, 1):
        found = compare_mirrored(plain, plain[labels == guess].mean(0).expand_as(mirrored), labels)
        assert found.changed >= min(counts) - 2 and not found.exchanges_classes


def test_features_side_by_side() -> None:
    both = side_by_side(torch.randn(50, 3) * 100 + 7, torch.randn(50, 8) / 100)
    assert both.shape == (50, 11) and both.mean(0).abs().max() < 1e-5
    assert both[:, :3].square().sum() == pytest.approx(50) and both[:, 3:].square().sum() == pytest.approx(50)


def test_labels_may_have_gaps() -> None:
    plain, mirrored, labels = exchanged(features([20, 20], seed=4), 0, 1)
    assert compare_mirrored(plain, mirrored, 3 * labels + 2).pair == (2, 5)


def test_the_binomial_tail() -> None:
    assert _upper_tail(0, 10) == 1 and _upper_tail(10, 10) == 2**-10
    assert _upper_tail(8, 10) == pytest.approx((45 + 10 + 1) / 1024)
    assert math.isclose(_upper_tail(300, 400), 1.296e-24, rel_tol=1e-3) and ALPHA == 0.01


def test_gradients_know_left_from_right() -> None:
    """A ramp to the right is a ramp to the left in the mirror; brightness and contrast do not count."""
    ramp = torch.linspace(0, 1, 48).expand(1, 3, 48, 48)
    found = gradient_features(torch.cat([ramp, ramp.flip(3), ramp.mT, 0.2 * ramp - 5]))
    unit = found / found.norm(dim=1, keepdim=True)
    cosines = unit @ unit.T
    assert cosines[0, 3] > 0.999 and max(cosines[0, 1], cosines[0, 2]) < 0.1
    assert torch.isfinite(gradient_features(torch.zeros(2, 3, 20, 30))).all()


def test_gradients_of_arrows() -> None:
    rng = np.random.default_rng(0)
    images = torch.zeros(60, 3, 40, 40)
    for image, (x, y) in zip(images, rng.integers(2, 20, (60, 2)), strict=True):
        for column in range(16):
            image[:, y + column // 2 : y + 16 - column // 2, x + column] = 1  # a triangle that points to the right
    labels = torch.arange(60) % 2
    images[labels == 1] = images[labels == 1].flip(3)
    images += 0.05 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    found = compare_mirrored(gradient_features(images), gradient_features(images.flip(3)), labels)
    assert found.exchanges_classes
