"""Whether a mirror turns one class into another: a test on the features of images and of their mirror images."""

import dataclasses
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from flowers_torch.evaluation.metrics import wilson
from flowers_torch.evaluation.out_of_fold import assign_folds
from flowers_torch.training.linear_probe import fit_logistic_regression

ALPHA = 0.01  # probability of a false alarm
SIDE, CELLS, DIRECTIONS = 64, 4, 8  # of gradients
GRADIENTS = DIRECTIONS * (1 + (CELLS // 2) ** 2 + CELLS**2)  # features of an image


@dataclasses.dataclass(frozen=True)
class MirrorTest:
    """What linear probes, fitted on unmirrored images, recognize in mirrored ones.

    Of the images whose class is recognized, `changed` are recognized as another class when they are mirrored.
    In the pair of classes that are exchanged most clearly, these are `exchanged` of `of_pair` images.
    """

    images: int
    recognized: int
    changed: int
    pair: tuple[int, int]
    of_pair: int
    exchanged: int
    p_value: float
    is_conclusive: bool  # whether an exchange would have been found, were there one

    @property
    def exchanges_classes(self) -> bool:
        """Whether a mirror turns more than half of the images of a pair of classes into the other class."""
        return self.p_value < ALPHA


def compare_mirrored(features: Tensor, mirrored: Tensor, labels: Tensor, groups: Sequence[int] = ()) -> MirrorTest:
    """Compares features (N, D) of images with those of their mirror images by out-of-fold linear probes.

    The null hypothesis is that of the recognized images of two classes at most half are recognized as the other
    class when they are mirrored. Even a probe that guesses obeys it. It is tested by an exact binomial test with
    Bonferroni's correction, for each pair of classes that both change in more than half of their images: if mirror
    images look like nothing known, a probe may take them all for one class.

    Args:
        labels: (N,), in 0 .. classes - 1.
        groups: Images of a group, such as near-duplicates, share a fold.
    """
    present, labels = labels.unique(return_inverse=True)
    classes, folds = len(present), assign_folds(labels, groups)
    plain, other = torch.empty_like(labels), torch.empty_like(labels)
    for fold in folds.unique().tolist():
        held_out = folds == fold
        probe = fit_logistic_regression(features[~held_out], labels[~held_out], classes)
        plain[held_out] = probe.logits(features[held_out]).argmax(1)
        other[held_out] = probe.logits(mirrored[held_out]).argmax(1)
    right = plain == labels
    # Recognized images by their class and by that of their mirror image.
    table = torch.bincount(labels[right] * classes + other[right], minlength=classes**2).view(classes, classes)
    count, pairs = table.sum(1), math.comb(classes, 2)
    best = ((0, 0), 0, 0, 1.0)
    mutual = (2 * table > count[:, None]) & (2 * table > count[:, None]).T
    for a, b in mutual.triu(1).nonzero().tolist():
        of_pair, exchanged = int(count[a] + count[b]), int(table[a, b] + table[b, a])
        p_value = min(1.0, pairs * _upper_tail(exchanged, of_pair))
        if p_value < best[3]:
            best = (int(present[a]), int(present[b])), of_pair, exchanged, p_value
    recognized, commonest = int(right.sum()), int(labels.bincount().max())
    able = wilson(recognized, len(labels))[0] > commonest / len(labels)
    able = able and pairs * 0.5 ** int(count.sort().values[-2:].sum()) < ALPHA
    return MirrorTest(len(labels), recognized, recognized - int(table.diag().sum()), *best, able)


def _upper_tail(successes: int, trials: int) -> float:
    """Probability of so many successes or more in throws of a coin."""
    return sum(math.comb(trials, k) for k in range(successes, trials + 1)) / 2**trials


def side_by_side(*features: Tensor) -> Tensor:
    """Several features (N, D1), (N, D2) of the same images as one, each with the same variance in total."""
    centered = [each - each.mean(0) for each in features]
    return torch.cat([each / each.square().sum(1).mean().sqrt().clamp(min=1e-12) for each in centered], 1)


def gradient_features(images: Tensor) -> Tensor:
    """Histograms of signed gradients (N, D) of images (N, 3, H, W), in cells and in the whole image.

    A network that was trained on mirrored images hardly tells them apart; gradients do (Dalal and Triggs 2005, with
    the sign).
    """
    gray = F.interpolate(images.float().mean(1, keepdim=True), (SIDE, SIDE), mode="bilinear", antialias=True)
    across, down = gray[..., 1:-1, 2:] - gray[..., 1:-1, :-2], gray[..., 2:, 1:-1] - gray[..., :-2, 1:-1]
    strength, turn = across.hypot(down), torch.atan2(down, across) / (2 * math.pi) * DIRECTIONS
    centers = torch.arange(DIRECTIONS, device=images.device).view(1, -1, 1, 1)
    distance = (turn - centers).remainder(DIRECTIONS)
    near = 1 - torch.minimum(distance, DIRECTIONS - distance)
    histograms = strength * near.clamp(min=0)  # shared between the two nearest directions
    pooled = [F.adaptive_avg_pool2d(histograms, cells).flatten(1) for cells in (1, CELLS // 2, CELLS)]
    return torch.cat([F.normalize(each, dim=1).sqrt() for each in pooled], 1)
