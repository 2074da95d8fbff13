"""What out-of-fold predictions of linear probes tell about the data: a learning curve, and label issues.

An image has a label issue if a model that was not trained on it gives another class a probability of at least
that class's mean probability for its own images (confident learning, Northcutt et al. 2021).
"""

import dataclasses
import math
from collections.abc import Sequence
from statistics import NormalDist

import torch
from torch import Tensor

from flowers_torch.errors import plural, printable
from flowers_torch.evaluation.metrics import wilson
from flowers_torch.training.linear_probe import fit_logistic_regression

FOLDS = 5
FRACTIONS = (0.1, 0.25, 0.5, 1.0)  # of the training images, for the learning curve
SUBSETS = 5  # random subsets of a fraction
SMALL_GAIN = 0.01  # of accuracy


def assign_folds(labels: Tensor, groups: Sequence[int] = ()) -> Tensor:
    """Assigns each image to a fold (N,), stratified by class.

    Images of one group, such as near-duplicates, share a fold. Without groups each image is its own group.
    """
    group = list(groups) or list(range(len(labels)))
    fold: dict[int, int] = {}
    counts = {label: 0 for label in labels.unique().tolist()}
    for index in torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)).tolist():
        if group[index] not in fold:
            label = int(labels[index])
            fold[group[index]] = (counts[label] + label) % FOLDS
            counts[label] += 1
    return torch.tensor([fold[each] for each in group])


def out_of_fold_probabilities(
    features: Tensor, labels: Tensor, classes: int, groups: Sequence[int] = (), fraction: float = 1.0, draw: int = 0
) -> tuple[Tensor, int]:
    """Probabilities (N, classes) of each image from a linear probe fitted without the image's fold.

    A probe is fitted on a random fraction of each class, another one for each `draw`. Also returns the mean number of
    these images.
    """
    found, trained, fold_of_image = torch.empty(len(labels), classes), [], assign_folds(labels, groups)
    for fold in fold_of_image.unique().tolist():
        held_out = fold_of_image == fold
        chosen = draw_subset((~held_out).nonzero()[:, 0], labels, groups, fraction, draw)
        probe = fit_logistic_regression(features[chosen], labels[chosen], classes)
        found[held_out] = probe.logits(features[held_out]).softmax(1)
        trained.append(len(chosen))
    return found, sum(trained) // len(trained)


def draw_subset(indices: Tensor, labels: Tensor, groups: Sequence[int], fraction: float, draw: int) -> Tensor:
    """A random fraction of each class among `indices`, at least one image of it; groups are taken whole."""
    if fraction == 1:
        return indices
    members: dict[int, list[int]] = {}
    for index in indices.tolist():
        members.setdefault(groups[index] if groups else index, []).append(index)
    wanted = {label: max(1, round(fraction * n)) for label, n in enumerate(torch.bincount(labels[indices]).tolist())}
    units, chosen = list(members.values()), []
    for position in torch.randperm(len(units), generator=torch.Generator().manual_seed(draw)).tolist():
        label = int(labels[units[position][0]])
        if wanted[label] > 0:
            chosen += units[position]
            wanted[label] -= len(units[position])
    return torch.tensor(sorted(chosen))


@dataclasses.dataclass(frozen=True)
class CurvePoint:
    """Accuracy for a number of training images, averaged over random subsets of that size."""

    images: int  # mean over folds and subsets
    accuracy: float
    low: float  # 95% interval
    high: float
    spread: float = 0.0  # standard deviation between the subsets


@dataclasses.dataclass(frozen=True)
class Gain:
    """What the second half of the training images added, with the standard error of each number."""

    accuracy: tuple[float, float]
    recall: tuple[tuple[float, float], ...]  # of each class; NaN for a class without images


@dataclasses.dataclass(frozen=True)
class LearningCurve:
    """Cross-validated accuracy of a linear probe on growing random parts of the training images."""

    points: list[CurvePoint]  # one for each of `FRACTIONS`
    gain: Gain
    probabilities: Tensor  # out of fold, of all images (N, classes)

    def describe(self, classes: Sequence[str]) -> str:
        """A sentence on whether more photos would help, and of which classes."""
        half, whole = self.points[-2:]
        (gain, error), sure = self.gain.accuracy, 1.96
        numbers = f"accuracy went from {half.accuracy:.3f} to {whole.accuracy:.3f} ({gain:+.3f} +- {sure * error:.3f})"
        text = f"from {half.images} to {plural(whole.images, 'training photo')} {numbers}"
        if gain - sure * error > 0 and gain > SMALL_GAIN:
            text += ": doubling the photos again should help, by less than that"
        elif gain + sure * error > SMALL_GAIN:
            text += ": more photos may help, but these are too few to be sure"
        else:
            text += ": more photos of this kind would bring little; rare kinds and better labels would help more"
        # A limit that one class in 20 sets reaches by chance, whatever the number of classes (Bonferroni).
        limit = NormalDist().inv_cdf(1 - 0.05 / len(classes))
        recall = zip(classes, self.gain.recall, strict=True)
        growing = [(gain, name) for name, (gain, error) in recall if gain > limit * error]
        if growing:
            named = ", ".join(
                f"{printable(name, 40)} ({gain:+.2f})" for gain, name in sorted(growing, reverse=True)[:5]
            )
            text += f"; recall grew most for {named}"
        return text


def learning_curve(features: Tensor, labels: Tensor, classes: int, groups: Sequence[int] = ()) -> LearningCurve:
    """Cross-validated accuracy of a linear probe on fractions of the training images: `SUBSETS` subsets of each."""
    points, correct = [], torch.empty(0)
    for fraction in FRACTIONS:
        found = [
            out_of_fold_probabilities(features, labels, classes, groups, fraction, draw)
            for draw in range(SUBSETS if fraction < 1 else 1)
        ]
        former, correct = correct, torch.stack([p.argmax(1) == labels for p, _ in found]).double()  # (draws, N)
        images = sum(trained for _, trained in found) // len(found)
        points.append(_curve_point(images, correct))
    return LearningCurve(points, _gain(former, correct[0], labels, classes), found[0][0])


def _curve_point(images: int, correct: Tensor) -> CurvePoint:
    """The point of a number of training images, from the correctness of each image by draws (draws, N)."""
    rates = correct.mean(1)
    rate, spread = float(rates.mean()), float(rates.std()) if len(rates) > 1 else 0.0
    low, high = wilson(rate * correct.shape[1], correct.shape[1])
    of_draws = 1.96 * spread / math.sqrt(len(rates))
    low, high = rate - math.hypot(rate - low, of_draws), rate + math.hypot(high - rate, of_draws)
    return CurvePoint(images, rate, max(0.0, low), min(1.0, high), spread)


def _gain(half: Tensor, whole: Tensor, labels: Tensor, classes: int) -> Gain:
    """From the correctness with half of the images (draws, N) and with all of them (N,)."""
    differences = whole - half  # (draws, N)

    def mean_and_error(values: Tensor) -> tuple[float, float]:
        images = values.shape[1]
        if images == 0:
            return math.nan, math.nan
        by_draw, by_image = values.mean(1), values.mean(0)
        # An image that never changes says little of others: as in the Agresti-Coull interval, two more are added.
        of_images = (float(by_image.square().sum()) + 1) / (images + 2) ** 2
        return float(by_draw.mean()), math.sqrt(of_images + float(by_draw.var()) / len(by_draw))

    return Gain(mean_and_error(differences), tuple(mean_and_error(differences[:, labels == c]) for c in range(classes)))


@dataclasses.dataclass(frozen=True)
class LabelIssue:
    """An image whose label may be wrong, and the class that the model suggests."""

    index: int
    label: int
    suggested: int
    label_probability: float
    suggested_probability: float


def find_label_issues(probabilities: Tensor, labels: Tensor) -> list[LabelIssue]:
    """Label issues, the most severe first, from out-of-fold probabilities (N, classes) and labels (N,)."""
    thresholds = probabilities.new_full((probabilities.shape[1],), 2.0)  # never reached by an empty class
    for label in labels.unique().tolist():
        thresholds[label] = probabilities[labels == label, label].mean()
    probability, suggested = torch.where(probabilities >= thresholds, probabilities, -1.0).max(1)
    of_label = probabilities[torch.arange(len(labels)), labels]
    issues = [
        LabelIssue(i, int(labels[i]), int(suggested[i]), float(of_label[i]), float(probability[i]))
        for i in ((probability >= 0) & (suggested != labels)).nonzero()[:, 0].tolist()
    ]
    return sorted(issues, key=lambda i: (i.label_probability - i.suggested_probability, i.index))
