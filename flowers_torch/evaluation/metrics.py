"""Classification metrics, calibration (Guo et al. 2017), and lines that describe them.

Metrics are computed from sums and counts over images, never from means of batch means.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from flowers_torch.errors import plural, printable

FEW_IMAGES = 10  # below this number of images, the metrics of a class mean little
PREDICTION_COLUMNS = ("file", "label", "predicted", "probability", "correct")  # of predictions.csv
TOP = 5  # largest k of the top-k accuracy
BINS = 15  # of the calibration error
TEMPERATURES = (0.05, 20.0)  # limits of the fit
PRIOR_IMAGES = 16  # weight of the prior of a temperature


@dataclasses.dataclass(frozen=True)
class Scores:
    """Metrics of a set of predictions.

    As in scikit-learn, precision and F1 of a class that is never predicted are 0. Recall and F1 of a class
    without images are NaN; such a class is left out of the averages.
    """

    images: int
    correct: int
    loss: float  # mean cross-entropy in nats
    brier: float  # mean squared distance between probabilities and one-hot labels, 0..2
    calibration_error: float  # ECE of the predicted class, see calibration.py
    in_top: tuple[int, ...]  # images with the label among the 1, 2, ..., TOP most probable classes
    confusion: Tensor  # (classes, classes) counts; rows are true, columns predicted

    @property
    def accuracy(self) -> float:
        return self.correct / self.images

    def interval(self) -> tuple[float, float]:
        """95% Wilson interval of the accuracy."""
        return wilson(self.correct, self.images)

    def by_class(self) -> dict[str, Tensor]:
        """`support` (number of images), `precision`, `recall` and `f1` of each class (classes,)."""
        right, support, predicted = self.confusion.diag(), self.confusion.sum(1), self.confusion.sum(0)
        f1 = torch.where(support > 0, 2 * right / (support + predicted).clamp(min=1), math.nan)
        return {"support": support, "precision": right / predicted.clamp(min=1), "recall": right / support, "f1": f1}

    def averages(self) -> dict[str, dict[str, float]]:
        """Mean precision, recall and F1: `macro` weights the classes equally, `weighted` by images."""
        support, *columns = self.by_class().values()
        weights = support[support > 0].double()
        found: dict[str, dict[str, float]] = {"macro": {}, "weighted": {}}
        for name, column in zip(("precision", "recall", "f1"), columns, strict=True):
            values = column[support > 0].double()
            found["macro"][name] = float(values.mean())
            found["weighted"][name] = float((values * weights).sum() / weights.sum())
        return found

    def small_classes(self) -> list[int]:
        """Classes with fewer than `FEW_IMAGES` images."""
        return (self.confusion.sum(1) < FEW_IMAGES).nonzero()[:, 0].tolist()

    def to_dict(self, classes: tuple[str, ...]) -> dict[str, Any]:
        """JSON values; NaN becomes null."""
        by_class = {
            column: {name: None if math.isnan(x) else x for name, x in zip(classes, values.tolist(), strict=True)}
            for column, values in self.by_class().items()
        }
        return {
            "images": self.images,
            "correct": self.correct,
            "accuracy": self.accuracy,
            "interval_95": list(self.interval()),
            "top": {str(k): count / self.images for k, count in enumerate(self.in_top, start=1)},
            "loss": self.loss,
            "brier": self.brier,
            "calibration_error": self.calibration_error,
            **self.averages(),
            **by_class,
            "confusion": self.confusion.tolist(),
        }


def score(logits: Tensor, labels: Tensor) -> Scores:
    """Scores of logits (N, classes) against labels (N,)."""
    images, classes = logits.shape
    logits = logits.double()
    probabilities = logits.softmax(1)
    confidence, predicted = probabilities.max(1)
    correct = predicted == labels
    top = logits.topk(min(TOP, classes)).indices == labels[:, None]
    distances = (probabilities - F.one_hot(labels, classes)).square().sum(1)
    return Scores(
        images=images,
        correct=int(correct.sum()),
        loss=float(F.cross_entropy(logits, labels, reduction="sum")) / images,
        brier=float(distances.sum()) / images,
        calibration_error=expected_calibration_error(confidence, correct),
        in_top=tuple(top.sum(0).cumsum(0).tolist()),
        confusion=torch.bincount(labels * classes + predicted, minlength=classes**2).view(classes, classes),
    )


def wilson(correct: float, total: float, z: float = 1.96) -> tuple[float, float]:
    """Wilson score interval of a proportion, accurate near 0 and 1 too; `z` standard deviations, 1.96 for 95%."""
    fraction = correct / total
    center = (fraction + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z / (1 + z**2 / total) * math.sqrt(fraction * (1 - fraction) / total + z**2 / (4 * total**2))
    # The ends are exact; rounding would put an accuracy of 1 above its own interval.
    return center - half if correct else 0.0, center + half if correct < total else 1.0


def upper_limit(errors: int, total: int, alpha: float) -> float:
    """The largest error rate at which at most `errors` of `total` have probability `alpha` (Clopper and Pearson)."""
    if errors >= total:
        return 1.0
    terms = [math.lgamma(total + 1) - math.lgamma(k + 1) - math.lgamma(total - k + 1) for k in range(errors + 1)]
    low, high = errors / total, 1.0
    for _ in range(60):
        rate = (low + high) / 2
        logs = (term + k * math.log(rate) + (total - k) * math.log1p(-rate) for k, term in enumerate(terms))
        low, high = (rate, high) if math.fsum(map(math.exp, logs)) > alpha else (low, rate)
    return high


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
    """The temperature T of softmax(logits / T), fitted on images that were not used for training.

    The sum of their cross-entropies is minimized, with a Gamma prior on 1 / T whose mode is 1 and which weighs as much
    as `PRIOR_IMAGES` images do. So a few dozen images cannot make a calibrated network worse, and images that are
    all classified correctly do not mean T = 0: a certainty that a few hundred images cannot support.
    """
    logits = logits.double()
    right = logits.gather(1, labels[:, None])
    low, high = (math.log(1 / t) for t in reversed(TEMPERATURES))
    for _ in range(50):  # bisection: the objective is convex in 1 / T, so its derivative increases
        inverse = math.exp((low + high) / 2)
        slope = float(((logits * inverse).softmax(1) * logits).sum() - right.sum())
        slope += PRIOR_IMAGES * (1 - 1 / inverse)
        low, high = (low, math.log(inverse)) if slope > 0 else (math.log(inverse), high)
    return math.exp(-(low + high) / 2)


def describe_epoch(row: dict[str, Any], epochs: int) -> str:
    """One line for an epoch of the history, with the remaining time of its stage."""
    left = (epochs - row["epoch"]) * row["seconds"]
    remaining = f"{left / 60:.0f} min" if left >= 90 else f"{left:.0f} s"
    parts = (f"{name} loss {row[f'{name}_loss']:.4f} acc {row[f'{name}_accuracy']:.4f}" for name in ("train", "val"))
    return (
        f"  {row['stage']} {row['epoch']}/{epochs}  {'  '.join(parts)}  "
        f"{row['seconds']:.1f} s, {row['images_per_second']:.1f} img/s" + (f", {remaining} left" if left else "")
    )


def describe_scores(scores: Scores, classes: Sequence[str], split: str = "test") -> str:
    """One line: accuracy with its interval, and the class with the lowest recall."""
    low, high = scores.interval()
    text = (
        f"{split:8} accuracy {scores.accuracy:.4f} (95% interval {low:.3f} .. {high:.3f}), "
        f"{scores.correct} of {plural(scores.images, 'photo')}, loss {scores.loss:.4f}"
    )
    if weakest := weakest_class(scores):
        label, other = (printable(classes[i], 40) for i in weakest)
        row = scores.confusion[weakest[0]]
        own, misses, images = (int(count) for count in (row[weakest[0]], row[weakest[1]], row.sum()))
        text += f"; lowest recall {label} {own / images:.2f}, {misses} of {images - own} misclassified as {other}"
    return text


def weakest_class(scores: Scores) -> tuple[int, int] | None:
    """The class with the lowest recall and its most frequent wrong prediction; None without errors."""
    if scores.correct == scores.images:
        return None
    weakest = int(scores.by_class()["recall"].nan_to_num(2.0).argmin())
    others = scores.confusion[weakest].clone()
    others[weakest] = -1
    return weakest, int(others.argmax())


def describe_small_classes(scores: Scores, classes: Sequence[str]) -> str:
    """A warning about classes with too few images; empty if there are none."""
    small = scores.small_classes()
    if not small:
        return ""
    names = ", ".join(f"{printable(classes[i], 40)} ({int(scores.confusion[i].sum())})" for i in small[:5])
    more = f" and {len(small) - 5} more" if len(small) > 5 else ""
    few = (
        f"{len(small)} of {plural(classes, 'class')} {'has' if len(small) == 1 else 'have'} under {FEW_IMAGES} photos "
        "here, too few for metrics of their own"
    )
    return f"{few}: {names}{more}"


def prediction_rows(
    paths: Sequence[str], logits: Tensor, labels: Tensor, classes: Sequence[str]
) -> list[dict[str, Any]]:
    """A row for each image: file, label, predicted class, its probability, and whether it is correct."""
    probabilities, predicted = logits.softmax(1).max(1)
    rows = zip(paths, labels.tolist(), predicted.tolist(), probabilities.tolist(), strict=True)
    return [
        dict(
            zip(
                PREDICTION_COLUMNS,
                (path, classes[label], classes[guess], round(chance, 6), int(guess == label)),
                strict=True,
            )
        )
        for path, label, guess, chance in rows
    ]
