"""Prediction sets: what they promise on new images, against a plain count, and what they refuse."""

import json

import numpy as np
import pytest
import torch

from flowers_torch.errors import UsageError
from flowers_torch.evaluation.prediction_sets import coverage_of, fit_sets, prediction_sets, set_threshold


def draw(images: int, classes: int, scale: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities of an overconfident model (N, classes), and labels."""
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(images, classes, generator=generator)
    return (2 * logits).softmax(1), torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]


@pytest.mark.parametrize("coverage", [0.8, 0.9, 0.95])
@pytest.mark.parametrize("images", [25, 100, 5000])
def test_sets_contain_the_class_as_often_as_promised(images: int, coverage: float) -> None:
    """Means over data sets; also for more validation images than quantiles are stored."""
    found = []
    for seed in range(60 if images < 1000 else 8):
        probabilities, labels = draw(images + 1000, 8, 2.0, seed)
        threshold = set_threshold(fit_sets(probabilities[:images], labels[:images]), coverage)
        found.append(coverage_of(probabilities[images:], labels[images:], threshold)[0] / 1000)
    error = np.std(found) / np.sqrt(len(found))
    assert coverage - 2.5 * error <= np.mean(found) <= coverage + 1 / (images + 1) + 2.5 * error + 0.002


def test_the_threshold_is_the_conformal_quantile() -> None:
    probabilities, labels = draw(200, 5, 1.0, 0)
    scores = np.sort(1 - probabilities[torch.arange(200), labels].double().numpy())
    level = np.ceil(201 * 0.9) / 200  # as in Angelopoulos and Bates 2021
    assert set_threshold(fit_sets(probabilities, labels), 0.9) == pytest.approx(
        1 - np.quantile(scores, level, method="inverted_cdf"), abs=2e-6
    )


def test_classes_of_a_set() -> None:
    probabilities = torch.tensor([[0.2, 0.5, 0.3], [0.4, 0.35, 0.25], [0.0, 0.0, 1.0]])
    assert prediction_sets(probabilities, 0.3) == [[1, 2], [0, 1], [2]]
    assert prediction_sets(probabilities, 1.01) == [[1], [0], [2]]  # never empty
    assert prediction_sets(probabilities, 0.0) == [[1, 2, 0], [0, 1, 2], [2, 0, 1]]
    inside, size = coverage_of(probabilities, torch.tensor([2, 2, 2]), 0.3)
    assert (inside, size) == (2, pytest.approx(5 / 3))


def test_few_images_cannot_promise_much() -> None:
    stored = json.loads(json.dumps(fit_sets(*draw(12, 3, 1.0, 0))))
    assert set_threshold(stored, 0.9) == stored["quantiles"][0][0]
    with pytest.raises(UsageError, match=r"takes 19 validation photos, there are 12; fix: ask for 92.3% or less"):
        set_threshold(stored, 0.95)
    with pytest.raises(UsageError, match="only the set of all classes"):
        set_threshold(stored, 1.0)
    with pytest.raises(UsageError, match="has no prediction sets"):
        set_threshold({}, 0.9)
    assert set_threshold(stored, 0.923) <= stored["quantiles"][0][0]


def test_saturated_probabilities_keep_every_true_class() -> None:
    probabilities = torch.tensor([[1.0, 0.0]] * 40 + [[0.9999999, 1e-7]] * 10)
    threshold = set_threshold(fit_sets(probabilities, torch.zeros(50, dtype=torch.long)), 0.95)
    assert 0.9999 < threshold <= float(probabilities.amin(1).max().new_tensor(0.9999999))
    assert prediction_sets(probabilities, threshold) == [[0]] * 50
