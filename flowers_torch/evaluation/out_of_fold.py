"""What out-of-fold predictions of linear probes tell about the data: a learning curve, and label issues.

An image has a label issue if a model that was not trained on it gives another class a probability of at least
that class's mean probability for its own images (confident learning, Northcutt et al. 2021).
"""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from flowers_torch.evaluation.metrics import wilson
from flowers_torch.training.linear_probe import fit_logistic_regression

FOLDS = 5
FRACTIONS = (0.1, 0.25, 0.5, 1.0)  # of the training images, for the learning curve


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
    features: Tensor, labels: Tensor, classes: int, groups: Sequence[int] = (), fraction: float = 1.0
) -> tuple[Tensor, int]:
    """Probabilities (N, classes) of each image from a linear probe fitted without the image's fold.

    A probe is fitted on a fraction of each class; also returns the mean number of these images.
    """
    found, trained, fold_of_image = torch.empty(len(labels), classes), [], assign_folds(labels, groups)
    for fold in fold_of_image.unique().tolist():
        held_out = fold_of_image == fold
        rest = (~held_out).nonzero()[:, 0]
        by_class = (rest[labels[rest] == label] for label in labels.unique())
        chosen = torch.cat([m[: max(1, round(fraction * len(m)))] for m in by_class if len(m)])
        probe = fit_logistic_regression(features[chosen], labels[chosen], classes)
        found[held_out] = probe.logits(features[held_out]).softmax(1)
        trained.append(len(chosen))
    return found, sum(trained) // len(trained)


@dataclasses.dataclass(frozen=True)
class CurvePoint:
    """Accuracy for a number of training images."""

    images: int  # mean over the folds
    accuracy: float
    low: float  # 95% interval
    high: float


def learning_curve(
    features: Tensor, labels: Tensor, classes: int, groups: Sequence[int] = ()
) -> tuple[list[CurvePoint], Tensor]:
    """Cross-validated accuracy of a linear probe on fractions of the training images.

    Also returns the out-of-fold probabilities (N, classes) of the last fraction: all images.
    """
    points = []
    for fraction in FRACTIONS:
        probabilities, trained = out_of_fold_probabilities(features, labels, classes, groups, fraction)
        correct = int((probabilities.argmax(1) == labels).sum())
        points.append(CurvePoint(trained, correct / len(labels), *wilson(correct, len(labels))))
    return points, probabilities


def describe_learning_curve(points: Sequence[CurvePoint]) -> str:
    """A sentence on whether more photos would help."""
    half, whole = points[-2:]
    gain = whole.accuracy - half.accuracy
    numbers = f"accuracy went from {half.accuracy:.3f} to {whole.accuracy:.3f}"
    text = f"from {half.images} to {whole.images} training photos {numbers}"
    if whole.low > half.accuracy and gain > 0.01:
        return f"{text}: doubling the photos again should help, by up to about {gain:.3f}"
    if gain > 0.01:
        return f"{text}: more photos may help, but these are too few to be sure"
    return f"{text}: more photos of this kind would bring little; rare kinds and better labels would help more"


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
