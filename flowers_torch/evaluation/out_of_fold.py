"""Out-of-fold predictions of linear probes, and the learning curve that they give."""

import dataclasses
import math
from collections.abc import Sequence
from statistics import NormalDist

import torch
from torch import Tensor

from flowers_torch.errors import plural, printable
from flowers_torch.evaluation.metrics import fit_temperature, wilson
from flowers_torch.training.linear_probe import fit_linear_probe, fit_logistic_regression

FOLDS = 5
FRACTIONS = (0.1, 0.25, 0.5, 1.0)  # of the training images, for the learning curve
SUBSETS = 5  # random subsets of a fraction
SMALL_GAIN = 0.01  # of accuracy


def assign_folds(labels: Tensor, groups: Sequence[int] = (), seed: int = 0) -> Tensor:
    """Assigns each image to a fold (N,), stratified by class.

    Images of one group, such as near-duplicates, share a fold. Without groups each image is its own group.
    """
    group = list(groups) or list(range(len(labels)))
    fold: dict[int, int] = {}
    counts = {label: 0 for label in labels.unique().tolist()}
    for index in torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)).tolist():
        if group[index] not in fold:
            label = int(labels[index])
            fold[group[index]] = (counts[label] + label) % FOLDS
            counts[label] += 1
    return torch.tensor([fold[each] for each in group])


def choose_penalty(features: Tensor, labels: Tensor, classes: int, groups: Sequence[int] = (), seed: int = 0) -> float:
    """The penalty of a linear probe that predicts the first fold best. A weak one lets it memorize wrong labels."""
    fold = assign_folds(labels, groups, seed)
    held_out = fold == fold.min()
    train, validation = ((features[some], labels[some]) for some in (~held_out, held_out))
    return fit_linear_probe(train, validation, classes)[1]


def out_of_fold_probabilities(
    features: Tensor,
    labels: Tensor,
    classes: int,
    groups: Sequence[int] = (),
    fraction: float = 1.0,
    draw: int = 0,
    seed: int = 0,
    l2: float | None = None,
) -> tuple[Tensor, int]:
    """Probabilities (N, classes) of each image from a linear probe fitted without the image's fold.

    One temperature calibrates all of them. Also returns the mean number of images that a probe is fitted on.

    Args:
        features: (N, D).
        labels: (N,).
        classes: Number of classes.
        groups: Of each image; images of one group share a fold.
        fraction: Of the images of each class that a probe is fitted on, chosen at random.
        draw: Chooses another fraction.
        seed: Assigns other folds.
        l2: Penalty of the probes; None takes that of `choose_penalty`.
    """
    if l2 is None:
        l2 = choose_penalty(features, labels, classes, groups, seed)
    logits, trained, fold_of_image = torch.empty(len(labels), classes), [], assign_folds(labels, groups, seed)
    for fold in fold_of_image.unique().tolist():
        held_out = fold_of_image == fold
        chosen = draw_subset((~held_out).nonzero()[:, 0], labels, groups, fraction, draw)
        probe = fit_logistic_regression(features[chosen], labels[chosen], classes, l2)
        logits[held_out] = probe.logits(features[held_out])
        trained.append(len(chosen))
    return (logits / fit_temperature(logits, labels)).softmax(1), sum(trained) // len(trained)


def average_probabilities(each: Sequence[Tensor], labels: Tensor) -> Tensor:
    """The mean (N, classes) of the probabilities of several networks, calibrated again.

    The mean is less certain than the networks are, because they make different mistakes.
    """
    if len(each) == 1:
        return each[0]
    logits = torch.stack(list(each)).mean(0).clamp(min=1e-12).log()
    return (logits / fit_temperature(logits, labels)).softmax(1)


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


def learning_curve(
    networks: Sequence[Tensor], labels: Tensor, classes: int, groups: Sequence[int] = ()
) -> LearningCurve:
    """Cross-validated accuracy of linear probes on fractions of the training images: `SUBSETS` subsets of each.

    Args:
        networks: Features (N, D) of one or several networks. Each gets a probe; see `average_probabilities`.
        labels: (N,).
        classes: Number of classes.
        groups: Of each image; images of one group share a fold.
    """
    points, correct = [], torch.empty(0)
    penalties = [choose_penalty(features, labels, classes, groups) for features in networks]
    for fraction in FRACTIONS:
        means, images = [], 0
        draws = SUBSETS if fraction < 1 else 1
        for draw in range(draws):
            found = [
                out_of_fold_probabilities(features, labels, classes, groups, fraction, draw, l2=l2)
                for features, l2 in zip(networks, penalties, strict=True)
            ]
            means.append(average_probabilities([probabilities for probabilities, _ in found], labels))
            images += found[0][1]
        former, correct = correct, torch.stack([mean.argmax(1) == labels for mean in means]).double()  # (draws, N)
        points.append(_curve_point(images // draws, correct))
    return LearningCurve(points, _gain(former, correct[0], labels, classes), means[0])


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
