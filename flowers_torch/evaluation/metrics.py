"""Numbers about predictions, from sums and counts over photos; never means of batch means."""

import dataclasses
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Scores:
    """How good a set of predictions is."""

    photos: int
    correct: int
    loss: float  # mean cross-entropy in nats
    confusion: Tensor  # (classes, classes) counts; rows are true, columns predicted

    @property
    def accuracy(self) -> float:
        return self.correct / self.photos

    def interval(self) -> tuple[float, float]:
        """95% Wilson interval of the accuracy."""
        return wilson(self.correct, self.photos)

    def recalls(self) -> Tensor:
        """Share of each class's photos that were recognised (classes,); NaN where a class has none."""
        return self.confusion.diag() / self.confusion.sum(1)

    def to_dict(self, classes: tuple[str, ...]) -> dict[str, Any]:
        """As JSON; a class without photos has null."""
        recalls = {
            name: None if r != r else r for name, r in zip(classes, self.recalls().tolist(), strict=True)
        }
        return {
            "photos": self.photos,
            "correct": self.correct,
            "accuracy": self.accuracy,
            "interval_95": list(self.interval()),
            "loss": self.loss,
            "recall": recalls,
            "confusion": self.confusion.tolist(),
        }


def score(logits: Tensor, labels: Tensor) -> Scores:
    """Scores of logits (N, classes) against labels (N,)."""
    classes = logits.shape[1]
    predicted = logits.argmax(1)
    confusion = torch.bincount(labels * classes + predicted, minlength=classes**2).view(classes, classes)
    return Scores(
        photos=len(labels),
        correct=int((predicted == labels).sum()),
        loss=float(F.cross_entropy(logits, labels)),
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
