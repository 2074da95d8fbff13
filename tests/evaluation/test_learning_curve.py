"""Linear probes: folds, out-of-fold probabilities and learning curves."""

import numpy as np
import pytest
import torch

from flowers_torch.evaluation.out_of_fold import (
    CurvePoint,
    assign_folds,
    describe_learning_curve,
    learning_curve,
    out_of_fold_probabilities,
)
from flowers_torch.training.linear_probe import fit_logistic_regression


def blobs(images: int, classes: int, spread: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(classes, 8, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(images) % classes
    return centers[labels] + spread * torch.randn(images, 8, generator=generator), labels


def test_equal_to_scikit_learn() -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    features, labels = blobs(150, 3, 1.0)
    probe = fit_logistic_regression(features, labels, 3)
    inputs = ((features - probe.mean) / probe.scale).numpy().astype(np.float64)
    theirs = linear.LogisticRegression(C=1.0, max_iter=1000, tol=1e-8).fit(inputs, labels.numpy())
    assert probe.logits(features).softmax(1).numpy() == pytest.approx(theirs.predict_proba(inputs), abs=5e-3)


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
    points, probabilities = learning_curve(hard, labels, 10)
    assert torch.equal(probabilities, out_of_fold_probabilities(hard, labels, 10)[0])
    assert [p.images for p in points] == pytest.approx([24, 60, 120, 240], abs=8)
    assert points[0].accuracy < points[-1].accuracy
    assert all(p.low <= p.accuracy <= p.high for p in points)


@pytest.mark.parametrize(
    ("half", "whole", "text"),
    [
        (CurvePoint(400, 0.80, 0.78, 0.82), CurvePoint(800, 0.90, 0.88, 0.92), "should help"),
        (CurvePoint(40, 0.80, 0.7, 0.9), CurvePoint(80, 0.84, 0.74, 0.91), "may help"),
        (CurvePoint(400, 0.99, 0.98, 1.0), CurvePoint(800, 0.992, 0.98, 1.0), "bring little"),
    ],
)
def test_the_description_of_the_curve(half: CurvePoint, whole: CurvePoint, text: str) -> None:
    assert text in describe_learning_curve([half, whole])
