"""Calibration: bins, the calibration error and the temperature."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from flowers_torch.evaluation.metrics import (
    BINS,
    expected_calibration_error,
    fit_temperature,
    reliability,
)


def overconfident(images: int, scale: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits that are calibrated when divided by `scale`."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(images, 5, generator=generator, dtype=torch.float64)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    return logits * scale, labels


def test_bins_against_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    confidence, correct = rng.uniform(0.2, 1, 300), rng.random(300) < 0.7
    confidence[:3] = (1.0, 1 / 3, 0.2)  # an edge belongs to the bin below it
    expected = 0.0
    for low in np.linspace(0, 1, BINS + 1)[:-1]:
        inside = (confidence > low) & (confidence <= low + 1 / BINS + 1e-12)
        if inside.any():
            expected += inside.sum() / 300 * abs(confidence[inside].mean() - correct[inside].mean())
    found = reliability(torch.from_numpy(confidence), torch.from_numpy(correct))
    assert sum(b.images for b in found) == 300
    assert all(b.low < b.confidence <= b.high for b in found)
    value = expected_calibration_error(torch.from_numpy(confidence), torch.from_numpy(correct))
    assert value == pytest.approx(expected, abs=1e-9)


def test_a_known_error() -> None:
    confidence = torch.tensor([0.95] * 10 + [0.55] * 10)
    correct = torch.tensor([True] * 9 + [False] + [True] * 3 + [False] * 7)
    assert expected_calibration_error(confidence, correct) == pytest.approx((0.05 + 0.25) / 2, abs=1e-6)


@pytest.mark.parametrize("scale", [0.4, 1.0, 3.0])
def test_the_temperature_calibrates(scale: float) -> None:
    logits, labels = overconfident(4000, scale)
    temperature = fit_temperature(logits, labels)
    assert temperature == pytest.approx(scale, rel=0.05)
    confidence, predicted = (logits / temperature).softmax(1).max(1)
    assert expected_calibration_error(confidence, predicted == labels) < 0.02


def test_the_temperature_minimizes_the_loss_as_scipy_does() -> None:
    optimize = pytest.importorskip("scipy.optimize")
    logits, labels = overconfident(3000, 2.0, seed=1)
    best = optimize.minimize_scalar(
        lambda t: float(F.cross_entropy(logits / t, labels)), bounds=(0.05, 20), method="bounded"
    )
    assert fit_temperature(logits, labels) == pytest.approx(best.x, rel=1e-2)


def test_errorless_images_do_not_give_certainty() -> None:
    logits = torch.tensor([[3.0, 0, 0], [0, 3.0, 0], [0, 0, 3.0]]).repeat(10, 1)
    labels = torch.tensor([0, 1, 2]).repeat(10)
    probability = float((logits / fit_temperature(logits, labels)).softmax(1)[0, 0])
    assert 0.91 < probability < 0.97  # 0.909 without a temperature


@pytest.mark.parametrize("images", [10, 25, 50])
def test_few_images_do_not_harm_a_calibrated_network(images: int) -> None:
    """Nor does a network profit less that is far from calibrated, on average over sets of validation images."""
    logits, labels = overconfident(4000, 1.0)
    losses = {}
    for scale in (1.0, 2.0):
        found = []
        for draw in range(20):
            chosen = torch.randint(4000, (images,), generator=torch.Generator().manual_seed(draw))
            temperature = fit_temperature(scale * logits[chosen], labels[chosen])
            found.append(float(F.cross_entropy(scale * logits / temperature, labels)))
        losses[scale] = sum(found) / 20 - float(F.cross_entropy(scale * logits, labels))
    assert losses[1.0] < 0.01 and losses[2.0] < -0.05


def test_confident_networks_stay_confident() -> None:
    """Ten photos, all right: targets smoothed as by Platt made 0.999 of them 0.95."""
    logits = torch.eye(10) * 9.0
    temperature = fit_temperature(logits, torch.arange(10))
    assert float((logits / temperature).softmax(1)[0, 0]) == pytest.approx(0.9989, abs=5e-4)


def test_the_temperature_stays_within_its_limits() -> None:
    assert 1 < fit_temperature(torch.tensor([[9.0, 0.0]] * 4), torch.tensor([1] * 4)) < 4
    assert fit_temperature(torch.tensor([[9.0, 0.0]] * 9999), torch.tensor([1] * 9999)) == pytest.approx(20, 1e-3)
