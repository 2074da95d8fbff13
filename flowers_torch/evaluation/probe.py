"""A linear classifier on features that are at hand: seconds where training a network takes minutes.

It answers what needs many trainings: probabilities of every photo from a model that never saw it, and what
more photos would bring.
"""

import dataclasses
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from flowers_torch.evaluation.metrics import wilson

SHARES = (0.1, 0.25, 0.5, 1.0)  # of the training photos, for the learning curve
STEPS = 60  # of L-BFGS, at most


@dataclasses.dataclass(frozen=True)
class LinearProbe:
    """Multinomial logistic regression on standardised features."""

    mean: Tensor
    scale: Tensor
    weight: Tensor  # (classes, D)
    bias: Tensor

    def logits(self, features: Tensor) -> Tensor:
        """Logits (N, classes) of features (N, D)."""
        return (features - self.mean) / self.scale @ self.weight.T + self.bias


def fit_probe(features: Tensor, labels: Tensor, classes: int, l2: float = 1.0) -> LinearProbe:
    """Fits a probe by L-BFGS; the same features give the same probe.

    Args:
        features: (N, D).
        labels: (N,).
        classes: Of the probe; those without a photo get low probabilities.
        l2: Penalty, l2 / (2 N) times the squared weights, as scikit-learn's with C = 1 / l2.
    """
    mean = features.mean(0)
    scale = (
        (features - mean).square().mean().sqrt().clamp(min=1e-12)
    )  # one for all: small features stay small
    inputs = (features - mean) / scale
    weight = torch.zeros(classes, features.shape[1], requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=STEPS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(inputs @ weight.T + bias, labels)
        loss = loss + l2 / (2 * len(labels)) * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return LinearProbe(mean, scale, weight.detach(), bias.detach())


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
        probe = fit_probe(features[~held], labels[~held], classes)
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
            probe = fit_probe(features[chosen], labels[chosen], classes)
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
