"""Cross-validated linear probes on features: out-of-fold probabilities and learning curves."""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from flowers_torch.evaluation.metrics import wilson
from flowers_torch.training.linear_probe import fit_logistic_regression

FRACTIONS = (0.1, 0.25, 0.5, 1.0)  # of the training images, for the learning curve


def assign_folds(labels: Tensor, folds: int, groups: Sequence[int] = (), seed: int = 0) -> Tensor:
    """Assigns each image to a fold (N,), stratified by class.

    Images of one group, such as near-duplicates, share a fold. Without groups each image is its own group.
    """
    generator = torch.Generator().manual_seed(seed)
    group = list(groups) or list(range(len(labels)))
    fold: dict[int, int] = {}
    counts = {label: 0 for label in labels.unique().tolist()}
    for index in torch.randperm(len(labels), generator=generator).tolist():
        if group[index] not in fold:
            label = int(labels[index])
            fold[group[index]] = (counts[label] + label) % folds
            counts[label] += 1
    return torch.tensor([fold[each] for each in group])


def out_of_fold_probabilities(
    features: Tensor, labels: Tensor, classes: int, folds: int = 5, groups: Sequence[int] = ()
) -> Tensor:
    """Probabilities (N, classes) of each image from a linear probe fitted without the image's fold."""
    fold_of_image = assign_folds(labels, folds, groups)
    return _out_of_fold(features, labels, classes, fold_of_image)[0]


def _out_of_fold(
    features: Tensor, labels: Tensor, classes: int, fold_of_image: Tensor, fraction: float = 1.0
) -> tuple[Tensor, int]:
    """Probabilities from probes fitted on the first images of each class, and their mean number."""
    found, trained = torch.empty(len(labels), classes), []
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
    features: Tensor, labels: Tensor, classes: int, folds: int = 5, groups: Sequence[int] = ()
) -> list[CurvePoint]:
    """Cross-validated accuracy of a linear probe on fractions of the training images."""
    fold_of_image = assign_folds(labels, folds, groups)
    points = []
    for fraction in FRACTIONS:
        found, trained = _out_of_fold(features, labels, classes, fold_of_image, fraction)
        correct = int((found.argmax(1) == labels).sum())
        points.append(CurvePoint(trained, correct / len(labels), *wilson(correct, len(labels))))
    return points


def describe_learning_curve(points: Sequence[CurvePoint]) -> str:
    """A sentence on whether more photos would help."""
    half, whole = points[-2], points[-1]
    gain = whole.accuracy - half.accuracy
    text = (
        f"from {half.images} to {whole.images} training photos accuracy went from {half.accuracy:.3f} to "
        f"{whole.accuracy:.3f}"
    )
    if whole.low > half.accuracy and gain > 0.01:
        return f"{text}: doubling the photos again should help, by up to about {gain:.3f}"
    if gain > 0.01:
        return f"{text}: more photos may help, but these are too few to be sure"
    return f"{text}: more photos of this kind would bring little; rare kinds and better labels would help more"
