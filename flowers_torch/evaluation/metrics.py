"""Numbers about predictions, from sums and counts over photos; never means of batch means."""

import dataclasses
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from flowers_torch.evaluation.calibration import expected_calibration_error

FEW_PHOTOS = 10  # of a class in the test; below this its own numbers say next to nothing
TOP = 5  # "among the k likeliest" is counted up to this k


@dataclasses.dataclass(frozen=True)
class Scores:
    """How good a set of predictions is.

    Precision and F1 of a class that was never predicted are 0, as in scikit-learn; recall and F1 of a class
    without photos are NaN, and such a class is left out of the averages.
    """

    photos: int
    correct: int
    loss: float  # mean cross-entropy in nats
    brier: float  # mean squared distance of the probabilities from the truth, 0 .. 2
    calibration_error: float  # ECE of the likeliest class, see calibration.py
    in_top: tuple[int, ...]  # photos whose class is among the 1, 2, .. TOP likeliest
    confusion: Tensor  # (classes, classes) counts; rows are true, columns predicted

    @property
    def accuracy(self) -> float:
        return self.correct / self.photos

    def interval(self) -> tuple[float, float]:
        """95% Wilson interval of the accuracy."""
        return wilson(self.correct, self.photos)

    def supports(self) -> Tensor:
        """Photos of each class (classes,)."""
        return self.confusion.sum(1)

    def recalls(self) -> Tensor:
        """Share of each class's photos that were recognised (classes,); NaN where a class has none."""
        return self.confusion.diag() / self.supports()

    def precisions(self) -> Tensor:
        """Share of the photos given each class that are of it (classes,); 0 where none was given it."""
        return self.confusion.diag() / self.confusion.sum(0).clamp(min=1)

    def f1s(self) -> Tensor:
        """Harmonic mean of precision and recall (classes,); NaN where a class has no photos."""
        f1 = 2 * self.confusion.diag() / (self.supports() + self.confusion.sum(0)).clamp(min=1)
        return torch.where(self.supports() > 0, f1, math.nan)

    def averages(self) -> dict[str, dict[str, float]]:
        """Precision, recall and F1 over the classes; `macro` counts classes alike, `weighted` photos."""
        present = self.supports() > 0
        weights = self.supports()[present].double()
        found: dict[str, dict[str, float]] = {"macro": {}, "weighted": {}}
        for name, values in (
            ("precision", self.precisions()),
            ("recall", self.recalls()),
            ("f1", self.f1s()),
        ):
            seen = values[present].double()
            found["macro"][name] = float(seen.mean())
            found["weighted"][name] = float((seen * weights).sum() / weights.sum())
        return found

    def small_classes(self) -> list[int]:
        """Classes with too few photos here for numbers of their own."""
        return [label for label, count in enumerate(self.supports().tolist()) if count < FEW_PHOTOS]

    def to_dict(self, classes: tuple[str, ...]) -> dict[str, Any]:
        """As JSON; a number of a class without photos is null."""

        def by_class(values: Tensor) -> dict[str, Any]:
            return {
                name: None if value != value else value
                for name, value in zip(classes, values.tolist(), strict=True)
            }

        return {
            "photos": self.photos,
            "correct": self.correct,
            "accuracy": self.accuracy,
            "interval_95": list(self.interval()),
            "top": {str(k): count / self.photos for k, count in enumerate(self.in_top, start=1)},
            "loss": self.loss,
            "brier": self.brier,
            "calibration_error": self.calibration_error,
            **self.averages(),
            "class_photos": by_class(self.supports()),
            "precision": by_class(self.precisions()),
            "recall": by_class(self.recalls()),
            "f1": by_class(self.f1s()),
            "confusion": self.confusion.tolist(),
        }


def score(logits: Tensor, labels: Tensor) -> Scores:
    """Scores of logits (N, classes) against labels (N,)."""
    photos, classes = logits.shape
    logits = logits.double()
    probabilities = logits.softmax(1)
    confidence, predicted = probabilities.max(1)
    right = predicted == labels
    likeliest = logits.topk(min(TOP, classes)).indices == labels[:, None]
    distances = (probabilities - F.one_hot(labels, classes)).square().sum(1)
    confusion = torch.bincount(labels * classes + predicted, minlength=classes**2).view(classes, classes)
    return Scores(
        photos=photos,
        correct=int(right.sum()),
        loss=float(F.cross_entropy(logits, labels, reduction="sum")) / photos,
        brier=float(distances.sum()) / photos,
        calibration_error=expected_calibration_error(confidence, right),
        in_top=tuple(likeliest.sum(0).cumsum(0).tolist()),
        confusion=confusion,
    )


def wilson(correct: int, photos: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson score interval of a share; unlike the normal one it stays within 0..1 and holds near 1.

    Args:
        correct: Successes.
        photos: Trials, at least 1.
        z: Standard deviations; 1.96 for 95%.
    """
    share = correct / photos
    centre = (share + z**2 / (2 * photos)) / (1 + z**2 / photos)
    half = z / (1 + z**2 / photos) * math.sqrt(share * (1 - share) / photos + z**2 / (4 * photos**2))
    return max(0.0, centre - half), min(1.0, centre + half)
