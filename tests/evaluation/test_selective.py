"""Selective prediction: risk-coverage curve, confidence threshold and OOD detector."""

import json
import math

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


def test_the_curve_by_hand() -> None:
    confidence = torch.tensor([0.5, 0.9, 0.7, 0.9, 0.6])
    correct = torch.tensor([False, True, False, True, True])
    curve = risk_coverage_curve(confidence, correct)
    rounded = [(round(p, 3), n, errors) for p, n, errors in curve]
    assert rounded == [(0.9, 2, 0), (0.7, 3, 1), (0.6, 4, 1), (0.5, 5, 2)]
    assert choose_threshold(curve, 0.0).accepted == 2
    at_quarter = choose_threshold(curve, 0.25)
    assert (at_quarter.accepted, at_quarter.errors) == (4, 1)
    assert at_quarter.probability == pytest.approx(0.6)
    assert choose_threshold(curve, 0.4) == Threshold(0.0, 5, 2, 5)


@pytest.mark.parametrize("wanted", [0.01, 0.05, 0.2])
def test_the_threshold_holds_on_the_images_it_was_chosen_on(wanted: float) -> None:
    generator = torch.Generator().manual_seed(0)
    confidence = torch.rand(5000, generator=generator)
    correct = torch.rand(5000, generator=generator) < confidence.sqrt()
    curve = risk_coverage_curve(confidence, correct)
    assert len(curve) <= CURVE_POINTS + 1
    chosen = choose_threshold(curve, wanted)
    accepted = confidence >= chosen.probability
    assert int(accepted.sum()) == chosen.accepted
    assert float((~correct[accepted]).float().mean()) <= wanted
    assert "unsure" in chosen.describe()


def test_an_unreachable_error_rate() -> None:
    curve = risk_coverage_curve(torch.tensor([0.9, 0.8]), torch.tensor([False, True]))
    with pytest.raises(UsageError, match="allow more than 50.0%"):
        choose_threshold(curve, 0.1)


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
    assert read_curve(selective) == [(pytest.approx(0.9), 1, 0), (pytest.approx(0.8), 2, 1)]
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
