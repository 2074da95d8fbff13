"""Label issues: images whose label is probably wrong, judged by out-of-fold probabilities.

Confident learning (Northcutt et al. 2021) estimates how many images of each class carry the label of another: an image
counts for a class if its probability reaches the mean probability of that class for its own images. Bayes' rule weighs
the probabilities of each image with these rates, so that an image between two classes that are often mixed up is more
suspicious than one between two classes that nobody takes for each other.
"""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class LabelIssue:
    """An image whose label may be wrong, and the most probable other class."""

    index: int
    label: int
    suggested: int
    label_probability: float  # given the image and its label, as in `true_class_probabilities`
    suggested_probability: float


def find_label_issues(probabilities: Tensor, labels: Tensor, groups: Sequence[int] = ()) -> list[LabelIssue]:
    """Label issues, the most severe first: the labels that are more probably wrong than right, and no fewer than there
    are images that count for another class than their label.

    Args:
        probabilities: (N, classes), of a model that was trained without the image and its group.
        labels: (N,).
        groups: Of each image, such as its near-duplicates. A class with one group is not judged, because a model that
            has seen no image of a class cannot know another one.
    """
    known = _has_several_groups(labels, probabilities.shape[1], groups)
    probabilities = probabilities.where(known, 0.0)
    of_class = true_class_probabilities(probabilities, labels)
    of_label = of_class[torch.arange(len(labels)), labels].where(known[labels], 1.0)
    counted = _counted_class(probabilities, labels)
    count = int(((counted >= 0) & (counted != labels) & known[labels]).sum())
    count = max(count, int((of_label < 0.5).sum()))
    probability, suggested = of_class.scatter(1, labels[:, None], -1.0).max(1)
    return [
        LabelIssue(i, int(labels[i]), int(suggested[i]), float(of_label[i]), float(probability[i]))
        for i in of_label.argsort(stable=True)[:count].tolist()
    ]


def true_class_probabilities(probabilities: Tensor, labels: Tensor) -> Tensor:
    """The probability (N, classes), float64, that an image is of a class, given what it shows and its label."""
    found = probabilities.double() * label_rates(probabilities, labels)[labels]
    return found / found.sum(1, keepdim=True).clamp(min=torch.finfo(found.dtype).tiny)


def label_rates(probabilities: Tensor, labels: Tensor) -> Tensor:
    """How often an image of a class (column) carries a label (row), float64; each column adds up to one."""
    classes = probabilities.shape[1]
    counted = _counted_class(probabilities, labels)
    labeled = torch.bincount(labels, minlength=classes)
    pairs = (labels * classes + counted)[counted >= 0]
    joint = torch.bincount(pairs, minlength=classes**2).view(classes, classes).double()
    joint.diagonal().clamp_(min=1)
    joint *= (labeled / joint.sum(1))[:, None]  # images that count for no class are as the others of their label
    mistakes = joint.sum() - joint.diagonal().sum()
    # A pair that was not seen is possible too: each pair gets as much as the mean of all.
    joint += mistakes / (classes * (classes - 1)) * (1 - torch.eye(classes))
    return joint / joint.sum(0).clamp(min=torch.finfo(joint.dtype).tiny)


def _counted_class(probabilities: Tensor, labels: Tensor) -> Tensor:
    """The class (N,) for which an image counts, or -1: the most probable of those that reach the class's own mean.

    An image whose label is more probable than that class counts for its label.
    """
    of_label = probabilities[torch.arange(len(labels)), labels]
    sums = of_label.new_zeros(probabilities.shape[1]).index_add_(0, labels, of_label)
    means = sums / torch.bincount(labels, minlength=len(sums))  # NaN, which nothing reaches, without images
    probability, confident = probabilities.where((probabilities >= means) & (probabilities > 0), -1.0).max(1)
    counted = confident.where(probability >= 0, -1)
    return labels.where((probability >= 0) & (probability <= of_label), counted)


def _has_several_groups(labels: Tensor, classes: int, groups: Sequence[int]) -> Tensor:
    group = torch.tensor(groups) if len(groups) else torch.arange(len(labels))
    pairs = torch.stack([labels, group]).unique(dim=1)
    return torch.bincount(pairs[0], minlength=classes) > 1
