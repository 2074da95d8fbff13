"""Label issues: images that may have the wrong label, by confident learning (Northcutt et al. 2021).

An image has a label issue if a model that was not trained on it gives another class a probability of at least
that class's mean probability for its own images.
"""

import dataclasses

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class LabelIssue:
    """An image whose label may be wrong."""

    index: int
    label: int
    suggested: int  # class that the model suggests
    label_probability: float
    suggested_probability: float


def find_label_issues(probabilities: Tensor, labels: Tensor) -> list[LabelIssue]:
    """Label issues, the most severe first, from out-of-sample probabilities (N, classes) and labels (N,)."""
    classes = probabilities.shape[1]
    thresholds = torch.full((classes,), 2.0, dtype=probabilities.dtype)  # never reached by an empty class
    for label in labels.unique().tolist():
        thresholds[label] = probabilities[labels == label, label].mean()
    candidates = torch.where(probabilities >= thresholds, probabilities, -1.0)
    probability, suggested = candidates.max(1)
    is_issue = (probability >= 0) & (suggested != labels)
    of_label = probabilities[torch.arange(len(labels)), labels]
    issues = [
        LabelIssue(i, int(labels[i]), int(suggested[i]), float(of_label[i]), float(probability[i]))
        for i in is_issue.nonzero()[:, 0].tolist()
    ]
    return sorted(issues, key=lambda i: (i.label_probability - i.suggested_probability, i.index))
