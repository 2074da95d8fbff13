"""Prediction sets: the classes that contain the true one for a chosen fraction of photos (split conformal prediction).

A set holds the classes whose probability reaches a threshold, and always the most probable class (least ambiguous
sets, Sadinle, Lei and Wasserman 2019). The threshold is a quantile of the probabilities that the true classes of the
validation images got. The promise is an average over photos like these: it does not hold for each class by itself,
nor for photos of another kind.
"""

import contextlib
import math
from typing import Any

import torch
from torch import Tensor

from flowers_torch.errors import UsageError, plural
from flowers_torch.evaluation.selective import DIGITS, OODDetector, pack_selective, risk_coverage_curve

MAX_POINTS = 1000  # of the stored quantiles
COVERAGES = (0.8, 0.9, 0.95, 0.99)  # that pages offer


def fit_sets(probabilities: Tensor, labels: Tensor) -> dict[str, Any]:
    """JSON values for the weights file, from validation probabilities (N, classes) and labels (N,).

    `quantiles` are pairs of a probability and its rank, 1 for the lowest: so many true classes got at most that.
    """
    true = probabilities.double().gather(1, labels[:, None])[:, 0].sort().values
    images, digits = len(true), 10**DIGITS
    ranks = range(0, images, math.ceil(images / MAX_POINTS))
    # Rounded down: a lower threshold makes sets larger, never smaller than promised.
    return {"images": images, "quantiles": [[math.floor(float(true[i]) * digits) / digits, i + 1] for i in ranks]}


def fit_thresholds(probabilities: Tensor, labels: Tensor, detector: OODDetector | None = None) -> dict[str, Any]:
    """All that a weights file stores to abstain and to make sets, from validation probabilities (N, classes)."""
    confidence, predicted = probabilities.max(1)
    curve = risk_coverage_curve(confidence, predicted == labels)
    return pack_selective(curve, detector) | {"sets": fit_sets(probabilities, labels)}


def set_threshold(stored: dict[str, Any], coverage: float) -> float:
    """The probability from which a class belongs to the set, so that sets hold the true class in `coverage` of cases.

    Args:
        stored: What `fit_sets` returned.
        coverage: Between 0 and 1.

    Raises:
        UsageError: there are too few validation images for it, or the model has none stored.
    """
    if not stored:
        raise UsageError("the model has no prediction sets", "train it again, or leave out --coverage")
    # Of n + 1 exchangeable photos, the new one is among the `rank` least probable with probability rank / (n + 1).
    rank = math.floor((1 - coverage) * (stored["images"] + 1) + 1e-9)
    if rank < 1:
        needed = math.ceil(1 / (1 - coverage) - 1 - 1e-9) if coverage < 1 else None
        what = f"--coverage {coverage:.4g} cannot be promised"
        if needed is None:
            raise UsageError(f"{what}: only the set of all classes is always right", "ask for less, such as 95%")
        most = math.floor(1000 * stored["images"] / (stored["images"] + 1)) / 10
        what = f"{what}: it takes {plural(needed, 'validation photo')}, "
        what += f"there {'is' if stored['images'] == 1 else 'are'} {stored['images']}"
        raise UsageError(what, f"ask for {most:.1f}% or less, or train with more validation photos")
    return max(probability for probability, position in stored["quantiles"] if position <= rank)


def set_thresholds(stored: dict[str, Any]) -> dict[float, float]:
    """The probability of `set_threshold` for each of the `COVERAGES` that can be promised."""
    found: dict[float, float] = {}
    for coverage in COVERAGES:
        with contextlib.suppress(UsageError):
            found[coverage] = set_threshold(stored, coverage)
    return found


def prediction_sets(probabilities: Tensor, threshold: float) -> list[list[int]]:
    """For each row of probabilities (N, classes), the classes of its set, the most probable one first."""
    order = probabilities.sort(dim=1, descending=True, stable=True).indices
    sizes = (probabilities >= threshold).sum(1).clamp(min=1).tolist()
    return [row[:size] for row, size in zip(order.tolist(), sizes, strict=True)]


def coverage_of(probabilities: Tensor, labels: Tensor, threshold: float) -> tuple[int, float]:
    """How many images (N, classes) have their label (N,) in their set, and the mean number of classes in a set."""
    inside = probabilities >= threshold
    sizes = inside.sum(1).clamp(min=1)
    inside |= torch.nn.functional.one_hot(probabilities.argmax(1), probabilities.shape[1]).bool()
    return int(inside.gather(1, labels[:, None]).sum()), float(sizes.double().mean())
