"""When a model should say "I don't know": too improbable, or too unlike the photos that it learned from.

Both are measured on validation photos and travel in the weights file as plain JSON (`ModelInfo.trust`).
"""

import base64
import dataclasses
import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from flowers_torch.errors import UsageError
from flowers_torch.evaluation.metrics import wilson

CURVE_POINTS = 1000  # of the stored trade-off between answering and erring
REFERENCE_PHOTOS = 128  # of training, whose features say what is familiar; each costs a forward pass
KEPT_SHARE = 0.99  # of validation photos that count as like the training photos
MAX_VALUES = 1 << 21  # class means larger than this are not stored: they would not fit a file's header


@dataclasses.dataclass(frozen=True)
class Threshold:
    """The probability from which on to answer, and what that came to in validation."""

    probability: float
    answered: int
    wrong: int
    photos: int

    def describe(self) -> str:
        """One line, with what the few photos of a validation can really promise."""
        bound = wilson(self.wrong, self.answered, z=1.645)[1]  # one-sided 95%
        return (
            f"answers from probability {self.probability:.3f} on: {self.wrong} of {self.answered} wrong in "
            f"validation (with 95% certainty at most {bound:.1%}), "
            f"{1 - self.answered / self.photos:.1%} of photos unsure"
        )


def risk_coverage_curve(confidence: Tensor, right: Tensor) -> list[tuple[float, int, int]]:
    """How many photos are answered, and how many of them wrong, from each probability on.

    Returns:
        (probability, answered, wrong), from the surest photo down; at most about `CURVE_POINTS` of them.
    """
    order = confidence.argsort(descending=True, stable=True)
    values = confidence[order].tolist()
    wrong = (~right[order]).long().cumsum(0).tolist()
    # Photos of one probability are answered together or not at all.
    last = [i for i, v in enumerate(values) if i + 1 == len(values) or values[i + 1] < v]
    step = math.ceil(len(last) / CURVE_POINTS)
    kept = sorted({*last[::step], last[-1]})
    return [(values[i], i + 1, wrong[i]) for i in kept]


def choose_threshold(curve: list[tuple[float, int, int]], max_error: float) -> Threshold:
    """The lowest probability from which on validation erred no more often than wanted.

    Args:
        curve: From `risk_coverage_curve`.
        max_error: Share of wrong answers among those given.

    Raises:
        UsageError: even the surest answers were wrong more often.
    """
    photos = curve[-1][1]
    fitting = [point for point in curve if point[2] <= max_error * point[1]]
    if not fitting:
        raise UsageError(
            f"--max-error {max_error:.3g}: in validation even the surest answers erred more often",
            f"allow more than {min(point[2] / point[1] for point in curve):.1%}",
        )
    probability, answered, wrong = max(fitting, key=lambda point: point[1])
    return Threshold(0.0 if answered == photos else probability, answered, wrong, photos)


@dataclasses.dataclass(frozen=True)
class OODDetector:
    """What the features of training photos look like: their centre and the direction of each class from it.

    Attributes:
        centre: Mean of the features (D,).
        directions: Of the class means, seen from the centre, unit length (classes with photos, D).
        limit: Largest distance that still counts as familiar.
    """

    centre: Tensor
    directions: Tensor
    limit: float

    def distance(self, features: Tensor) -> Tensor:
        """1 - cosine with the nearest class direction (N,); 0 .. 2."""
        return 1 - (F.normalize(features - self.centre, dim=1) @ self.directions.T).amax(1)


def fit_ood_detector(train: Tensor, labels: Tensor, validation: Tensor) -> OODDetector:
    """Learns the class directions from training photos and the limit from photos held out.

    Args:
        train: Features of training photos (N, D).
        labels: Their classes (N,).
        validation: Features of photos that did not train (M, D).
    """
    centre = train.mean(0)
    means = torch.stack([train[labels == label].mean(0) for label in labels.unique()])
    # Stored in half precision; rounded here, so that the limit belongs to what is stored.
    centre, directions = centre.half().float(), F.normalize(means - centre, dim=1).half().float()
    distances = OODDetector(centre, directions, 0.0).distance(validation).sort().values
    rank = min(len(distances), math.ceil((len(distances) + 1) * KEPT_SHARE))  # a conformal quantile
    return OODDetector(centre, directions, float(distances[rank - 1]))


def pack_selective(curve: list[tuple[float, int, int]], familiar: OODDetector | None) -> dict[str, Any]:
    """The plain values that the weights file keeps."""
    selective: dict[str, Any] = {"curve": [[round(p, 6), answered, wrong] for p, answered, wrong in curve]}
    if familiar is not None and familiar.directions.numel() <= MAX_VALUES:
        selective["ood_detector"] = {
            "centre": _pack(familiar.centre[None]),
            "directions": _pack(familiar.directions),
            "features": familiar.centre.numel(),
            "limit": familiar.limit,
        }
    return selective


def read_curve(selective: dict[str, Any]) -> list[tuple[float, int, int]]:
    """The trade-off that a weights file keeps.

    Raises:
        UsageError: it keeps none, because it is older or was not made by training.
    """
    if not selective.get("curve"):
        raise UsageError("the model knows no trade-off of errors", "train it again, or leave out --max-error")
    return [(float(p), int(answered), int(wrong)) for p, answered, wrong in selective["curve"]]


def read_ood_detector(selective: dict[str, Any]) -> OODDetector | None:
    """The features that a weights file knows; None where it keeps none."""
    stored = selective.get("ood_detector")
    if not stored:
        return None
    features = int(stored["features"])
    centre, directions = _unpack(stored["centre"], features), _unpack(stored["directions"], features)
    return OODDetector(centre[0], directions, float(stored["limit"]))


def _pack(rows: Tensor) -> str:
    return base64.b64encode(rows.half().numpy().tobytes()).decode()


def _unpack(text: str, columns: int) -> Tensor:
    values = np.frombuffer(base64.b64decode(text), dtype="<f2").reshape(-1, columns)
    return torch.from_numpy(values.astype(np.float32))
