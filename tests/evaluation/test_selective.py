"""Selective prediction: risk-coverage curve, confidence threshold and OOD detector."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from flowers_torch.errors import ModelFileError, UsageError
from flowers_torch.evaluation.selective import (
    CURVE_POINTS,
    Threshold,
    choose_threshold,
    fit_ood_detector,
    pack_selective,
    read_curve,
    read_ood_detector,
    risk_coverage_curve,
)

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from max_error import probabilities_of, simulate  # type: ignore[import-not-found]


def test_the_curve_by_hand() -> None:
    confidence = torch.tensor([0.5, 0.9, 0.7, 0.9, 0.6])
    correct = torch.tensor([False, True, False, True, True])
    curve = risk_coverage_curve(confidence, correct)
    rounded = [(round(p, 3), n, errors) for p, n, errors in curve]
    assert rounded == [(0.9, 2, 0), (0.7, 3, 1), (0.6, 4, 1), (0.5, 5, 2)]
    chosen = choose_threshold(curve, 0.4)  # (1 + 1) / (4 + 1)
    assert (chosen.accepted, chosen.errors) == (4, 1) and chosen.probability == pytest.approx(0.6)
    assert choose_threshold(curve, 0.5) == Threshold(0.0, 5, 2, 5)
    assert choose_threshold(curve, 1 / 3).accepted == 2
    with pytest.raises(UsageError, match=r"30% cannot be promised.*it takes 3 .* there are 2; fix: allow 33\.4%"):
        choose_threshold(curve, 0.3)


@pytest.mark.parametrize("wanted", [0.02, 0.05, 0.2])
def test_the_curve_and_the_threshold_agree(wanted: float) -> None:
    generator = torch.Generator().manual_seed(0)
    confidence = torch.rand(5000, generator=generator)
    correct = torch.rand(5000, generator=generator) < confidence.sqrt()
    curve = risk_coverage_curve(confidence, correct)
    assert len(curve) <= CURVE_POINTS + 1
    chosen = choose_threshold(curve, wanted)
    accepted = confidence >= chosen.probability
    assert int(accepted.sum()) == chosen.accepted and int((~correct[accepted]).sum()) == chosen.errors
    assert chosen.errors + 1 <= wanted * (chosen.accepted + 1)
    assert "unsure" in chosen.describe() and f"{chosen.bound():.1%} with 95% confidence" in chosen.describe()


@pytest.mark.parametrize("wanted", [0.01, 0.02, 0.05])
@pytest.mark.parametrize(
    ("accuracy", "images", "count"),
    [
        *((0.65, 100, 150), (0.8, 300, 100), (0.97, 60, 150), (0.9, 1000, 40)),
        pytest.param(0.9, 1000, 150, marks=pytest.mark.slow),
    ],
)
def test_promises_hold_on_new_images(accuracy: float, images: int, count: int, wanted: float) -> None:
    """Few draws; benchmarks/max_error.py has many. The choice is inside of each draw."""
    draw = np.random.default_rng(0)
    promised, beyond = simulate(probabilities_of(accuracy, 2.0, draw), images, wanted, count, draw)
    errors = promised + [0.0] * (count - len(promised))  # else nothing is promised, and no image is accepted
    assert np.mean(errors) <= wanted + 2 * np.std(errors) / np.sqrt(count)
    assert beyond <= 0.05 * count


@pytest.mark.parametrize(
    ("correct", "wanted", "message"),
    [
        ([True] * 60, 0.01, "it takes 99 .* there are 60; fix: allow 1.7% or more, or .* about 99 validation"),
        ([True] * 10 + [False] + [True] * 9, 0.05, "it takes 19 .* there are 10; .* about 38 validation"),
        ([False] + [True] * 99, 0.05, ""),
        ([False, True] * 50, 0.1, "even the most confident predictions"),
        ([True] * 60, 0.0, "no number of photos shows"),
        ([False, True], 0.1, "even the most confident predictions .*; fix: allow 66.7% or more"),
    ],
)
def test_what_cannot_be_promised_says_why(correct: list[bool], wanted: float, message: str) -> None:
    confidence = torch.linspace(0.99, 0.5, len(correct))
    curve = risk_coverage_curve(confidence, torch.tensor(correct))
    if message:
        with pytest.raises(UsageError, match=message):
            choose_threshold(curve, wanted)
    else:
        assert choose_threshold(curve, wanted).accepted == len(correct)


def cluster(label: int, images: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    center = torch.zeros(32)
    center[label] = 6
    return 1 + center + torch.randn(images, 32, generator=generator)


def test_ood_images_are_farther_than_images_of_known_classes() -> None:
    train = torch.cat([cluster(c, 40, c) for c in range(3)])
    labels = torch.arange(3).repeat_interleave(40)
    held_out = torch.cat([cluster(c, 60, 10 + c) for c in range(3)])
    detector = fit_ood_detector(train, labels, held_out)
    known = torch.cat([cluster(c, 60, 20 + c) for c in range(3)])
    ood = torch.cat([cluster(7, 60, 30), 1 + torch.randn(60, 32)])
    assert (detector.distance(known) > detector.threshold).float().mean() < 0.04
    assert (detector.distance(ood) > detector.threshold).float().mean() > 0.9


def test_json_round_trip() -> None:
    train, labels = torch.cat([cluster(0, 5, 0), cluster(1, 5, 1)]), torch.tensor([0] * 5 + [1] * 5)
    detector = fit_ood_detector(train, labels, train)
    curve = risk_coverage_curve(torch.tensor([0.9, 0.8]), torch.tensor([True, False]))
    selective = json.loads(json.dumps(pack_selective(curve, detector)))
    again = read_ood_detector(selective)
    assert again is not None and torch.equal(again.center, detector.center)
    assert torch.equal(again.directions, detector.directions) and again.threshold == detector.threshold
    assert read_curve(selective) == [(0.899999, 1, 0), (0.8, 2, 1)]  # rounded down
    assert read_ood_detector({}) is None
    with pytest.raises(UsageError, match="--max-error"):
        read_curve({})


@pytest.mark.parametrize(("center", "features"), [("AHw=", 1), ("AAA=", 2), ("A", 1), ("AAAAAAAA", 3)])
def test_a_damaged_detector(center: str, features: int) -> None:
    """Infinite, of another width, not base64, and directions of another width."""
    stored = {"center": center, "directions": "AAA=", "features": features, "threshold": 1.0}
    with pytest.raises(ModelFileError, match="out-of-distribution detector"):
        read_ood_detector({"ood_detector": stored})


def test_a_detector_of_huge_features_has_no_threshold() -> None:
    features = 1e6 * torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    assert math.isnan(fit_ood_detector(features, torch.arange(8) % 2, features).threshold)


def test_a_threshold_is_never_rounded_up_to_certainty() -> None:
    """Float32 probabilities that six digits round to 1 are below 1: nothing would reach such a threshold."""
    confidence = torch.tensor([1 - 2**-22] * 90 + [0.7] * 10)
    curve = read_curve(json.loads(json.dumps(pack_selective(risk_coverage_curve(confidence, confidence > 0.9), None))))
    threshold = choose_threshold(curve, 0.02)
    assert threshold.accepted == 90 and (confidence >= threshold.probability).sum() == 90
