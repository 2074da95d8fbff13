"""Linear probes: folds, out-of-fold probabilities and learning curves."""

import math

import pytest
import torch
from torch.nn.functional import nll_loss

from flowers_torch.evaluation import out_of_fold
from flowers_torch.evaluation.out_of_fold import (
    CurvePoint,
    Gain,
    LearningCurve,
    assign_folds,
    average_probabilities,
    draw_subset,
    learning_curve,
    out_of_fold_probabilities,
)
from flowers_torch.training.linear_probe import fit_logistic_regression


def blobs(images: int, classes: int, spread: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(classes, 8, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(images) % classes
    return centers[labels] + spread * torch.randn(images, 8, generator=generator), labels


def test_folds_are_even_and_keep_groups_together() -> None:
    labels = torch.arange(100) % 4
    fold = assign_folds(labels)
    counts = torch.stack([torch.bincount(labels[fold == f], minlength=4) for f in range(5)])
    assert counts.min() == counts.max() == 5
    groups = list(range(100))
    groups[40], groups[80] = 0, 0
    fold = assign_folds(labels, groups)
    assert fold[0] == fold[40] == fold[80]


def test_probabilities_are_out_of_fold() -> None:
    """Labels are random: only a probe that was fitted on an image can know its label."""
    features = torch.randn(80, 200, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(2, (80,), generator=torch.Generator().manual_seed(1))
    seen = fit_logistic_regression(features, labels, 2).logits(features).argmax(1)
    unseen = out_of_fold_probabilities(features, labels, 2)[0].argmax(1)
    assert (seen == labels).float().mean() == 1
    assert (unseen == labels).float().mean() < 0.75


def test_accuracy_rises_with_more_images() -> None:
    hard, labels = blobs(300, 10, 1.5)
    curve = learning_curve([hard], labels, 10)
    points = curve.points
    assert torch.equal(curve.probabilities, out_of_fold_probabilities(hard, labels, 10)[0])
    assert [p.images for p in points] == pytest.approx([24, 60, 120, 240], abs=8)
    assert points[0].accuracy < points[-1].accuracy
    assert all(0 <= p.low <= p.accuracy <= p.high <= 1 for p in points)
    assert points[0].spread > 0 and points[-1].spread == 0
    assert curve.gain.accuracy[0] == pytest.approx(points[-1].accuracy - points[-2].accuracy)


def test_the_probabilities_of_networks_are_averaged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(out_of_fold, "FRACTIONS", (0.5, 1.0))
    labels, groups = torch.arange(60) % 3, [i // 6 * 3 + i % 3 for i in range(60)]
    networks = [blobs(60, 3, 1.2, seed)[0] for seed in (0, 1)]
    curve = learning_curve(networks, labels, 3, groups)
    each = [out_of_fold_probabilities(features, labels, 3, groups)[0] for features in networks]
    assert torch.equal(curve.probabilities, average_probabilities(each, labels))
    whole = (curve.probabilities.argmax(1) == labels).double().mean()
    assert curve.points[-1].accuracy == whole >= max((p.argmax(1) == labels).double().mean() for p in each)


def test_the_mean_of_probabilities_is_calibrated() -> None:
    """Of three networks that are right in 80% and say so, the mean is right more often than it says."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(4, (3000,), generator=generator)
    each = []
    for _ in range(3):
        wrong = (labels + torch.randint(1, 4, labels.shape, generator=generator)) % 4
        said = labels.where(torch.rand(3000, generator=generator) < 0.8, wrong)
        each.append(torch.full((3000, 4), 0.2 / 3).scatter(1, said[:, None], 0.8))
    assert average_probabilities(each[:1], labels) is each[0]
    mean, averaged = torch.stack(each).mean(0), average_probabilities(each, labels)
    accuracy = (averaged.argmax(1) == labels).double().mean().item()
    before, after = (accuracy - p.max(1).values.double().mean().item() for p in (mean, averaged))
    assert before > 0.1 and abs(after) < before / 2
    assert nll_loss(averaged.log(), labels) < nll_loss(mean.log(), labels)


def test_the_order_of_the_images_does_not_matter() -> None:
    """The first half of each class shows another kind of images, as photos of two days in the order of their names."""
    features, labels = blobs(200, 4, 0.6)
    days = (torch.arange(200) >= 100).float()
    features = torch.cat(
        [features + 4 * days[:, None] * torch.randn(8, generator=torch.Generator().manual_seed(5)), days[:, None]], 1
    )
    shuffled = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    by_name, at_random = (
        learning_curve([features[i]], labels[i], 4).gain.accuracy for i in (torch.arange(200), shuffled)
    )
    assert by_name[0] == pytest.approx(at_random[0], abs=3 * by_name[1])
    half = draw_subset(torch.arange(200), labels, (), 0.5, draw=3)
    assert 30 < int((half < 100).sum()) < 70 and torch.bincount(labels[half]).tolist() == [25] * 4


def test_subsets_take_groups_whole() -> None:
    labels, groups = torch.arange(120) % 3, [i // 12 * 3 + i % 3 for i in range(120)]
    for draw in range(3):
        chosen = draw_subset(torch.arange(120), labels, groups, 0.25, draw)
        whole = {groups[i] for i in chosen.tolist()}
        assert len(chosen) == 4 * len(whole) and torch.bincount(labels[chosen]).tolist() == [12] * 3
    assert torch.bincount(labels[draw_subset(torch.arange(6), labels, (), 0.01, 0)]).tolist() == [1, 1, 1]


@pytest.mark.parametrize("count", [3, pytest.param(8, marks=pytest.mark.slow)])
def test_the_interval_of_the_gain_contains_the_gain(count: int) -> None:
    sets = [blobs(100, 4, 1.2, seed) for seed in range(count)]
    gains = [learning_curve([features], labels, 4).gain.accuracy for features, labels in sets]
    mean = sum(gain for gain, _ in gains) / len(gains)
    assert sum(abs(gain - mean) <= 1.96 * error for gain, error in gains) >= 0.85 * count
    assert all(error < 0.1 for _, error in gains)


def curve_of(half: float, whole: float, error: float, recall: tuple[tuple[float, float], ...]) -> LearningCurve:
    points = [CurvePoint(400, half, half - 0.02, half + 0.02), CurvePoint(800, whole, whole - 0.02, whole + 0.02)]
    return LearningCurve(points, Gain((whole - half, error), recall), torch.empty(0))


@pytest.mark.parametrize(
    ("half", "whole", "error", "text"),
    [
        (0.80, 0.90, 0.01, "should help, by less than that"),
        (0.80, 0.84, 0.04, "may help, but these are too few"),
        (0.99, 0.992, 0.002, "bring little"),
        (0.90, 0.89, 0.004, "bring little"),
    ],
)
def test_the_description_of_the_curve(half: float, whole: float, error: float, text: str) -> None:
    said = curve_of(half, whole, error, ((0.0, 0.1), (0.1, 0.1))).describe(["red", "blue"])
    assert text in said and "recall" not in said


def test_classes_that_profit_are_named() -> None:
    recall = ((0.3, 0.05), (0.1, 0.06), (math.nan, math.nan))
    said = curve_of(0.8, 0.9, 0.01, recall).describe(["red\x1b", "blue", "empty"])
    assert said.endswith("; recall grew most for red\\x1b (+0.30)")
