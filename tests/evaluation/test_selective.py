"""The limits that a model knows of itself."""

import json

import pytest
import torch

from flowers_torch.errors import UsageError
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


def test_the_trade_off_by_hand() -> None:
    confidence = torch.tensor([0.5, 0.9, 0.7, 0.9, 0.6])
    right = torch.tensor([False, True, False, True, True])
    curve = risk_coverage_curve(confidence, right)
    rounded = [(round(p, 3), n, wrong) for p, n, wrong in curve]
    assert rounded == [(0.9, 2, 0), (0.7, 3, 1), (0.6, 4, 1), (0.5, 5, 2)]
    assert choose_threshold(curve, 0.0).answered == 2
    at_quarter = choose_threshold(curve, 0.25)
    assert (at_quarter.answered, at_quarter.wrong) == (4, 1)
    assert at_quarter.probability == pytest.approx(0.6)
    assert choose_threshold(curve, 0.4) == Threshold(0.0, 5, 2, 5)


@pytest.mark.parametrize("wanted", [0.01, 0.05, 0.2])
def test_the_threshold_keeps_its_word_on_the_photos_it_was_chosen_on(wanted: float) -> None:
    generator = torch.Generator().manual_seed(0)
    confidence = torch.rand(5000, generator=generator)
    right = torch.rand(5000, generator=generator) < confidence.sqrt()
    curve = risk_coverage_curve(confidence, right)
    assert len(curve) <= CURVE_POINTS + 1
    chosen = choose_threshold(curve, wanted)
    answered = confidence >= chosen.probability
    assert int(answered.sum()) == chosen.answered
    assert float((~right[answered]).float().mean()) <= wanted
    assert "unsure" in chosen.describe()


def test_a_wish_that_cannot_be_met() -> None:
    curve = risk_coverage_curve(torch.tensor([0.9, 0.8]), torch.tensor([False, True]))
    with pytest.raises(UsageError, match="allow more than 50.0%"):
        choose_threshold(curve, 0.1)


def cluster(label: int, photos: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    centre = torch.zeros(32)
    centre[label] = 6
    return 1 + centre + torch.randn(photos, 32, generator=generator)


def test_strangers_are_farther_than_the_photos_of_known_classes() -> None:
    train = torch.cat([cluster(c, 40, c) for c in range(3)])
    labels = torch.arange(3).repeat_interleave(40)
    held_out = torch.cat([cluster(c, 60, 10 + c) for c in range(3)])
    familiar = fit_ood_detector(train, labels, held_out)
    known = torch.cat([cluster(c, 60, 20 + c) for c in range(3)])
    strange = torch.cat([cluster(7, 60, 30), 1 + torch.randn(60, 32)])
    assert (familiar.distance(known) > familiar.limit).float().mean() < 0.04
    assert (familiar.distance(strange) > familiar.limit).float().mean() > 0.9


def test_it_survives_json() -> None:
    train, labels = torch.cat([cluster(0, 5, 0), cluster(1, 5, 1)]), torch.tensor([0] * 5 + [1] * 5)
    familiar = fit_ood_detector(train, labels, train)
    curve = risk_coverage_curve(torch.tensor([0.9, 0.8]), torch.tensor([True, False]))
    selective = json.loads(json.dumps(pack_selective(curve, familiar)))
    again = read_ood_detector(selective)
    assert again is not None and torch.equal(again.centre, familiar.centre)
    assert torch.equal(again.directions, familiar.directions) and again.limit == familiar.limit
    assert read_curve(selective) == [(pytest.approx(0.9), 1, 0), (pytest.approx(0.8), 2, 1)]
    assert read_ood_detector({}) is None
    with pytest.raises(UsageError, match="--max-error"):
        read_curve({})
