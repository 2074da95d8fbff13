"""Calibration: reliability bins, the expected calibration error and temperature scaling.

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
    """Images whose confidence lies in `low < p <= high`."""

    low: float
    high: float
    images: int
    confidence: float  # mean
    accuracy: float


def reliability(confidence: Tensor, correct: Tensor) -> list[Bin]:
    """Confidence (N,) against correctness (N,) in bins of equal width; empty bins are left out."""
    edges = torch.linspace(0, 1, BINS + 1, dtype=torch.float64)
    index = (torch.bucketize(confidence.double(), edges) - 1).clamp(0, BINS - 1)
    sums = (torch.bincount(index, values.double(), BINS).tolist() for values in (confidence, correct))
    counts = torch.bincount(index, minlength=BINS).tolist()
    rows = zip(edges[:-1].tolist(), edges[1:].tolist(), counts, *sums, strict=True)
    return [Bin(low, high, n, confident / n, hits / n) for low, high, n, confident, hits in rows if n]


def expected_calibration_error(confidence: Tensor, correct: Tensor) -> float:
    """Mean distance between confidence and accuracy over the images (ECE); 0 is best."""
    return sum(b.images * abs(b.confidence - b.accuracy) for b in reliability(confidence, correct)) / len(confidence)


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature T that minimizes the cross-entropy of softmax(logits / T) on images not used for training.

    The targets are smoothed by 1 / (N + 2), as in Platt (1999). Without smoothing, the optimum for images
    that are all classified correctly is T = 0: a certainty that a few hundred images cannot support.
    """
    logits, (images, classes) = logits.double(), logits.shape
    smoothing = 1 / (images + 2)
    targets = torch.full_like(logits, smoothing / classes)
    targets[torch.arange(images), labels] += 1 - smoothing
    low, high = (math.log(1 / t) for t in reversed(TEMPERATURES))
    for _ in range(50):  # bisection: the loss is convex, so its derivative with respect to 1 / T increases
        middle = (low + high) / 2
        slope = float((((logits * math.exp(middle)).softmax(1) - targets) * logits).sum())
        low, high = (low, middle) if slope > 0 else (middle, high)
    return math.exp(-(low + high) / 2)
