"""Photos that may be in the wrong class, by confident learning (Northcutt et al. 2021).

A photo is suspect when a model that never saw it is as sure of another class as it is, on average, of that
class's own photos.
"""

import dataclasses

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class LabelIssue:
    """A photo whose label is in doubt."""

    index: int
    label: int  # as given
    better: int  # the class that it looks like
    own: float  # probability of the given label
    other: float  # of the other class


def find_label_issues(probabilities: Tensor, labels: Tensor) -> list[LabelIssue]:
    """Suspect photos, most doubtful first.

    Args:
        probabilities: Of each photo, from a model that never saw it (N, classes).
        labels: As given (N,).
    """
    classes = probabilities.shape[1]
    thresholds = torch.full((classes,), 2.0, dtype=probabilities.dtype)  # a class without photos claims none
    for label in labels.unique().tolist():
        thresholds[label] = probabilities[labels == label, label].mean()
    claims = torch.where(probabilities >= thresholds, probabilities, -1.0)
    strength, better = claims.max(1)
    doubtful = (strength >= 0) & (better != labels)
    own = probabilities[torch.arange(len(labels)), labels]
    found = [
        LabelIssue(i, int(labels[i]), int(better[i]), float(own[i]), float(strength[i]))
        for i in doubtful.nonzero()[:, 0].tolist()
    ]
    return sorted(found, key=lambda s: (s.own - s.other, s.index))
