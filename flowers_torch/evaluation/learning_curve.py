"""What a linear classifier on features that are at hand can tell about the photos.

It answers what would need many trainings of the network: probabilities of every photo from a model that never
saw it, and what more photos would bring.
"""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from flowers_torch.evaluation.metrics import wilson
from flowers_torch.training.linear_probe import fit_logistic_regression

SHARES = (0.1, 0.25, 0.5, 1.0)  # of the training photos, for the learning curve


def fold_of(labels: Tensor, folds: int, units: Sequence[int] = (), seed: int = 0) -> Tensor:
    """Fold of each photo (N,), every class dealt evenly, photos of a unit together.

    Args:
        labels: (N,).
        folds: How many.
        units: Group of each photo, such as its twins; each photo alone if empty.
        seed: Of the deal.
    """
    generator = torch.Generator().manual_seed(seed)
    group = list(units) or list(range(len(labels)))
    fold: dict[int, int] = {}
    dealt = {label: 0 for label in labels.unique().tolist()}
    for index in torch.randperm(len(labels), generator=generator).tolist():
        if group[index] not in fold:
            label = int(labels[index])
            fold[group[index]] = (dealt[label] + label) % folds
            dealt[label] += 1
    return torch.tensor([fold[unit] for unit in group])


def out_of_fold(
    features: Tensor, labels: Tensor, classes: int, folds: int = 5, units: Sequence[int] = ()
) -> Tensor:
    """Probabilities (N, classes) of each photo from a probe that was fitted without it and its twins."""
    place = fold_of(labels, folds, units)
    found = torch.empty(len(labels), classes)
    for fold in place.unique().tolist():
        held = place == fold
        probe = fit_logistic_regression(features[~held], labels[~held], classes)
        found[held] = probe.logits(features[held]).softmax(1)
    return found


@dataclasses.dataclass(frozen=True)
class CurvePoint:
    """Accuracy that a number of training photos gives."""

    photos: int  # trained on, on average
    accuracy: float
    low: float  # 95% interval
    high: float


def learning_curve(
    features: Tensor, labels: Tensor, classes: int, folds: int = 5, units: Sequence[int] = ()
) -> list[CurvePoint]:
    """Cross-validated accuracy of a probe on shares of the training photos, with Wilson's band."""
    place = fold_of(labels, folds, units)
    points = []
    for share in SHARES:
        correct, trained, runs = 0, 0, 0
        for fold in place.unique().tolist():
            held = place == fold
            rest = (~held).nonzero()[:, 0]
            kept = [
                members[: max(1, round(share * len(members)))]
                for members in (rest[labels[rest] == label] for label in labels.unique())
                if len(members)
            ]
            chosen = torch.cat(kept)
            probe = fit_logistic_regression(features[chosen], labels[chosen], classes)
            correct += int((probe.logits(features[held]).argmax(1) == labels[held]).sum())
            trained, runs = trained + len(chosen), runs + 1
        points.append(CurvePoint(trained // runs, correct / len(labels), *wilson(correct, len(labels))))
    return points


def more_photos_help(points: Sequence[CurvePoint]) -> str:
    """What the curve says, in a sentence."""
    half, whole = points[-2], points[-1]
    gain = whole.accuracy - half.accuracy
    told = (
        f"from {half.photos} to {whole.photos} training photos accuracy went from {half.accuracy:.3f} to "
        f"{whole.accuracy:.3f}"
    )
    if whole.low > half.accuracy and gain > 0.01:
        return f"{told}: twice as many again should help, by up to about {gain:.3f}"
    if gain > 0.01:
        return f"{told}: more photos may help, but these are too few to be sure"
    return f"{told}: more photos of this kind would bring little; rarer kinds and better labels would"
