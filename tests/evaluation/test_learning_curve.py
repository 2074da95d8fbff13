"""The linear probe and what is told from it."""

import numpy as np
import pytest
import torch

from flowers_torch.evaluation.learning_curve import (
    CurvePoint,
    fit_logistic_regression,
    fold_of,
    learning_curve,
    more_photos_help,
    out_of_fold,
)


def blobs(photos: int, classes: int, spread: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, 8, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(photos) % classes
    return centres[labels] + spread * torch.randn(photos, 8, generator=generator), labels


def test_equal_to_scikit_learn() -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    features, labels = blobs(150, 3, 1.0)
    probe = fit_logistic_regression(features, labels, 3)
    inputs = ((features - probe.mean) / probe.scale).numpy().astype(np.float64)
    theirs = linear.LogisticRegression(C=1.0, max_iter=1000, tol=1e-8).fit(inputs, labels.numpy())
    assert probe.logits(features).softmax(1).numpy() == pytest.approx(theirs.predict_proba(inputs), abs=5e-3)


def test_folds_are_even_and_keep_twins_together() -> None:
    labels = torch.arange(100) % 4
    place = fold_of(labels, 5)
    counts = torch.stack([torch.bincount(labels[place == f], minlength=4) for f in range(5)])
    assert counts.min() == counts.max() == 5
    units = list(range(100))
    units[40], units[80] = 0, 0
    place = fold_of(labels, 5, units)
    assert place[0] == place[40] == place[80]


def test_nobody_is_judged_by_a_probe_that_saw_it() -> None:
    """Labels by chance: a probe that saw the photos would know them, one that did not cannot."""
    features = torch.randn(80, 200, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(2, (80,), generator=torch.Generator().manual_seed(1))
    seen = fit_logistic_regression(features, labels, 2).logits(features).argmax(1)
    unseen = out_of_fold(features, labels, 2).argmax(1)
    assert (seen == labels).float().mean() == 1
    assert (unseen == labels).float().mean() < 0.75


def test_more_photos_help_where_they_do() -> None:
    hard, labels = blobs(300, 10, 1.5)
    points = learning_curve(hard, labels, 10)
    assert [p.photos for p in points] == pytest.approx([24, 60, 120, 240], abs=8)
    assert points[0].accuracy < points[-1].accuracy
    assert all(p.low <= p.accuracy <= p.high for p in points)


@pytest.mark.parametrize(
    ("half", "whole", "told"),
    [
        (CurvePoint(400, 0.80, 0.78, 0.82), CurvePoint(800, 0.90, 0.88, 0.92), "should help"),
        (CurvePoint(40, 0.80, 0.7, 0.9), CurvePoint(80, 0.84, 0.74, 0.91), "may help"),
        (CurvePoint(400, 0.99, 0.98, 1.0), CurvePoint(800, 0.992, 0.98, 1.0), "bring little"),
    ],
)
def test_what_is_said_of_the_curve(half: CurvePoint, whole: CurvePoint, told: str) -> None:
    assert told in more_photos_help([half, whole])
