"""Whether a stated probability can be believed, and one number that mends it: the temperature.

Guo et al. 2017, "On Calibration of Modern Neural Networks".
"""

import dataclasses
import math

import torch
from torch import Tensor

BINS = 15
TEMPERATURES = (0.05, 20.0)  # limits of the fit


@dataclasses.dataclass(frozen=True)
class Bin:
    """Photos whose stated probability lies within `low < p <= high`."""

    low: float
    high: float
    photos: int
    confidence: float  # mean stated probability
    accuracy: float  # share that was right


def reliability(confidence: Tensor, right: Tensor, bins: int = BINS) -> list[Bin]:
    """Stated probability against what came true, in bins of equal width; empty bins are left out.

    Args:
        confidence: Probability of the likeliest class (N,).
        right: Whether that class was right (N,).
        bins: Of equal width between 0 and 1.
    """
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
    # The last edge that a probability exceeds is the lower one of its bin.
    places = (torch.bucketize(confidence.double(), edges) - 1).clamp(0, bins - 1)
    counts = torch.bincount(places, minlength=bins).tolist()
    stated = torch.bincount(places, confidence.double(), bins).tolist()
    came_true = torch.bincount(places, right.double(), bins).tolist()
    return [
        Bin(float(edges[i]), float(edges[i + 1]), n, stated[i] / n, came_true[i] / n)
        for i, n in enumerate(counts)
        if n
    ]


def expected_calibration_error(confidence: Tensor, right: Tensor, bins: int = BINS) -> float:
    """Mean distance of stated probability and share that was right, over the photos (ECE); 0 is best."""
    found = reliability(confidence, right, bins)
    return sum(b.photos * abs(b.confidence - b.accuracy) for b in found) / len(confidence)


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature T for which softmax(logits / T) has the least cross-entropy.

    The targets are smoothed by 1 / (photos + 2), as Platt (1999) does for the same reason: where every photo
    is right, the bare optimum is T = 0, a certainty that a few hundred photos cannot support.

    Args:
        logits: Of photos that did not train the network (N, classes).
        labels: Their classes (N,).
    """
    logits, (photos, classes) = logits.double(), logits.shape
    smoothing = 1 / (photos + 2)
    targets = torch.full_like(logits, smoothing / classes)
    targets[torch.arange(photos), labels] += 1 - smoothing

    def slope(sharpness: float) -> float:
        """Derivative of the cross-entropy by 1/T; it rises with 1/T, because the loss is convex in it."""
        return float((((logits * sharpness).softmax(1) - targets) * logits).sum())

    low, high = (math.log(1 / t) for t in reversed(TEMPERATURES))
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if slope(math.exp(middle)) > 0 else (middle, high)
    return math.exp(-(low + high) / 2)
