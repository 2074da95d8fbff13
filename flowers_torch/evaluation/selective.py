"""Selective prediction: a model abstains on images of low confidence or out of distribution.

Both limits are fitted on validation images and stored in the weights file (`ModelInfo.selective`).
"""

import base64
import contextlib
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from flowers_torch.errors import ModelFileError, UsageError, plural
from flowers_torch.evaluation.metrics import upper_limit
from flowers_torch.files.reading import reading

CURVE_POINTS = 1000  # of the stored risk-coverage curve
STEP = 1.05  # between the numbers of images that candidates for a threshold accept
DIGITS = 6  # of a stored probability
RATES = (0.01, 0.02, 0.05, 0.1, 0.2)  # of errors, that pages offer
REFERENCE_IMAGES = 128  # training images that the detector is fitted on; each costs a forward pass
IN_DISTRIBUTION_FRACTION = 0.99  # of the validation images
MAX_VALUES = 1 << 21  # larger detectors do not fit into a file's header and are not stored

Curve = list[tuple[float, int, int]]  # (probability, accepted, errors)


@dataclasses.dataclass(frozen=True)
class Threshold:
    """A confidence threshold and its result on the validation images."""

    probability: float
    accepted: int
    errors: int
    images: int

    def bound(self) -> float:
        """Upper 95% limit of the error rate on new images, whichever threshold was chosen.

        The limits of all candidates hold together (Clopper and Pearson 1934, with Bonferroni's correction), so
        the choice among them does not matter.
        """
        return upper_limit(self.errors, self.accepted, 0.05 / len(candidates(self.images)))

    def describe(self) -> str:
        """One line with what holds for new images."""
        return (
            f"abstains below probability {self.probability:.3f}: {self.errors} of {self.accepted} wrong in validation, "
            f"on new photos at most {self.bound():.1%} with 95% confidence; "
            f"{1 - self.accepted / self.images:.1%} of photos unsure"
        )


def candidates(images: int) -> list[int]:
    """Numbers of images that a threshold may accept, falling by 5% from one to the next."""
    steps = math.ceil(math.log(max(images, 2)) / math.log(STEP)) + 1
    return sorted({int(images / STEP**step) for step in range(steps)} - {0}, reverse=True)


def risk_coverage_curve(confidence: Tensor, correct: Tensor) -> Curve:
    """Numbers of accepted images and of errors among them for about `CURVE_POINTS` falling thresholds.

    Thresholds are rounded down, to what the file stores: rounded up to 1, they would accept nothing.
    """
    rounded = (confidence.double() * 10**DIGITS).floor() / 10**DIGITS
    values, order = rounded.sort(descending=True, stable=True)
    errors = (~correct[order]).cumsum(0)
    # Images of equal probability are accepted together.
    accepted = values.unique_consecutive(return_counts=True)[1].cumsum(0).tolist()
    step = math.ceil(len(accepted) / CURVE_POINTS)
    return [(float(values[n - 1]), n, int(errors[n - 1])) for n in sorted({*accepted[::step], accepted[-1]})]


def choose_threshold(curve: Curve, max_error: float) -> Threshold:
    """The lowest threshold whose error rate on new images is at most `max_error`, on average over data sets.

    Among the `candidates` it is the one that accepts most images with `(errors + 1) <= max_error (accepted + 1)`.
    The additional error pays for the choice on the same images, as in conformal prediction.

    Raises:
        UsageError: there is none; the message says whether more images would help.
    """
    images = curve[-1][1]
    points = {}  # the last point of the curve up to each candidate
    for count in candidates(images):
        for point in curve:
            if point[1] <= count:
                points[point[1]] = point
    fitting = [point for point in points.values() if point[2] + 1 <= max_error * (point[1] + 1)]
    if not fitting:
        raise UsageError(*_no_threshold(list(points.values()) or curve, max_error))
    probability, accepted, errors = max(fitting, key=lambda point: point[1])
    return Threshold(0.0 if accepted == images else probability, accepted, errors, images)


def thresholds(curve: Curve) -> dict[float, Threshold]:
    """The thresholds of those `RATES` that can be promised, up to the first one that accepts every image."""
    found: dict[float, Threshold] = {}
    for rate in RATES:
        with contextlib.suppress(UsageError):
            found[rate] = choose_threshold(curve, rate)
            if not found[rate].probability:
                break
    return found


def _no_threshold(points: Sequence[tuple[float, int, int]], max_error: float) -> tuple[str, str]:
    """What the curve lacks, and the fix."""
    images = max(accepted for _, accepted, _ in points)
    least = min((errors + 1) / (accepted + 1) for _, accepted, errors in points)
    without_error = max((accepted for _, accepted, errors in points if not errors), default=0)
    fix = f"allow {math.ceil(least * 1000) / 10:.1f}% or more"
    needed = math.ceil(1 / max_error) - 1 if max_error > 0 else None
    what = f"--max-error {100 * max_error:.3g}% cannot be promised for new photos"
    if needed is None:
        return f"{what}: no number of photos shows that a model is never wrong", fix
    if without_error < 0.2 * images:
        return f"{what}: even the most confident predictions on validation photos have more errors", fix
    more = math.ceil(images * needed / without_error)
    return (
        f"{what}: it takes {needed} confident predictions in validation without an error, "
        f"there {'is' if without_error == 1 else 'are'} {without_error}",
        f"{fix}, or train with about {plural(more, 'validation photo')}",
    )


@dataclasses.dataclass(frozen=True)
class OODDetector:
    """Detects out-of-distribution images by the direction of their features from the training mean."""

    center: Tensor  # mean of the training features (D,)
    directions: Tensor  # unit vectors from the center to the class means (classes, D)
    threshold: float  # largest distance of an in-distribution image

    def distance(self, features: Tensor) -> Tensor:
        """1 - cosine similarity with the nearest class direction (N,), in 0..2."""
        return 1 - (F.normalize(features - self.center, dim=1) @ self.directions.T).amax(1)


def fit_ood_detector(train: Tensor, labels: Tensor, validation: Tensor) -> OODDetector:
    """Fits the directions on training features (N, D) and labels (N,), the threshold on validation (M, D)."""
    center = train.mean(0)
    means = torch.stack([train[labels == label].mean(0) for label in labels.unique()])
    # Rounded to half precision as in the file, so that the threshold belongs to the stored values.
    center, directions = center.half().float(), F.normalize(means - center, dim=1).half().float()
    return OODDetector(center, directions, distance_limit(OODDetector(center, directions, 0.0).distance(validation)))


def distance_limit(distances: Tensor) -> float:
    """The conformal quantile of the distances of validation images (N,): the largest one of a known kind."""
    rank = min(len(distances), math.ceil((len(distances) + 1) * IN_DISTRIBUTION_FRACTION))
    return float(distances.sort().values[rank - 1])


def pack_selective(curve: Curve, detector: OODDetector | None) -> dict[str, Any]:
    """JSON values for the weights file."""
    selective: dict[str, Any] = {"curve": [[round(p, DIGITS), accepted, errors] for p, accepted, errors in curve]}
    if detector is not None and detector.directions.numel() <= MAX_VALUES:
        tensors = {"center": detector.center, "directions": detector.directions}
        packed = {name: base64.b64encode(x.half().numpy().tobytes()).decode() for name, x in tensors.items()}
        selective["ood_detector"] = packed | {"features": len(detector.center), "threshold": detector.threshold}
    return selective


def read_curve(selective: dict[str, Any]) -> Curve:
    """The risk-coverage curve of a weights file.

    Raises:
        UsageError: the file has none.
    """
    if not selective.get("curve"):
        raise UsageError("the model has no risk-coverage curve", "train it again, or leave out --max-error")
    return [(float(p), int(accepted), int(errors)) for p, accepted, errors in selective["curve"]]


def read_ood_detector(selective: dict[str, Any]) -> OODDetector | None:
    """The detector of a weights file; None if it has none.

    Raises:
        ModelFileError: it is damaged.
    """
    stored = selective.get("ood_detector")
    if not stored:
        return None
    with reading("the model", "one with a valid out-of-distribution detector", ModelFileError):
        center, directions = (
            torch.from_numpy(np.frombuffer(base64.b64decode(stored[name]), dtype="<f2").astype(np.float32))
            for name in ("center", "directions")
        )
        detector = OODDetector(center, directions.view(-1, len(center)), float(stored["threshold"]))
        # guard: S8 directions
        if len(center) != stored["features"] or not (center.isfinite().all() and directions.isfinite().all()):
            raise ValueError("its numbers are not finite, or not as many as features")
    return detector
