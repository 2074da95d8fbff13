"""Paired comparison of two models on the same images."""

import dataclasses
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from flowers_torch.errors import DataError, plural
from flowers_torch.evaluation.predictions import RunPredictions

RESAMPLES = 10_000


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Results of two models on the same images; "first" and "second" in the given order."""

    images: int
    first_correct: int
    second_correct: int
    only_first: list[str]  # paths of images that only the first model classifies correctly
    only_second: list[str]
    p_value: float  # exact two-sided McNemar test
    interval: tuple[float, float]  # 95% bootstrap interval of the accuracy difference, second - first

    def verdict(self) -> str:
        """A one-line conclusion."""
        if self.p_value < 0.05:
            better = "second" if self.second_correct > self.first_correct else "first"
            return f"the {better} is better (p = {self.p_value:.3g})"
        return f"these photos cannot tell them apart (p = {self.p_value:.2g})"


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided p-value for equal error rates, from the numbers of images that only one gets right."""
    differ, fewer = only_first + only_second, min(only_first, only_second)
    tail = sum(math.comb(differ, k) for k in range(fewer + 1))
    return min(1.0, 2 * tail / 2**differ)


def bootstrap_difference(first: Tensor, second: Tensor) -> tuple[float, float]:
    """95% bootstrap interval of the accuracy difference, second - first, from their correctness (N,)."""
    # A resample is determined by its numbers of differences -1, 0 and 1, which are a multinomial draw.
    counts = torch.bincount(second.long() - first.long() + 1, minlength=3).numpy()
    draws = np.random.default_rng(0).multinomial(len(first), counts / len(first), RESAMPLES)
    low, high = np.quantile((draws[:, 2] - draws[:, 0]) / len(first), (0.025, 0.975))
    return float(low), float(high)


def common_images(runs: list[RunPredictions], split: str = "test") -> list[str]:
    """Paths that every run has in a split under the same label, in the order of the first run.

    Raises:
        DataError: there are none, or the runs have different classes.
    """
    if any(run.classes != runs[0].classes for run in runs):
        raise DataError("the runs have different classes", "compare runs of the same data")
    shared = _shared(runs, split)
    if not shared:
        raise DataError(f"the runs have no {split} photo in common", "train them with the same --seed")
    alike = [path for path, labels in shared.items() if len(labels) == 1]
    if not alike:
        raise DataError(
            f"no label of the {plural(shared, f'shared {split} photo')} is the same in all runs",
            "train one of them again",
        )
    return alike


def relabeled_images(runs: list[RunPredictions], split: str = "test") -> list[str]:
    """Paths that every run has in a split, but not under the same label: no run can be judged by another's."""
    return [path for path, labels in _shared(runs, split).items() if len(labels) > 1]


def _shared(runs: list[RunPredictions], split: str) -> dict[str, set[int]]:
    """Paths that every run has in a split, with the labels that the runs give them."""
    labels = [dict(zip(run.paths[split], run.labels[split].tolist(), strict=True)) for run in runs]
    common = set.intersection(*map(set, labels))
    return {path: {of_run[path] for of_run in labels} for path in runs[0].paths[split] if path in common}


def loss_change(first: Tensor, second: Tensor, labels: Tensor) -> tuple[float, float]:
    """Mean change of the cross-entropy from the first to the second logits (N, classes), and its standard error."""
    change = F.cross_entropy(second, labels, reduction="none") - F.cross_entropy(first, labels, reduction="none")
    return float(change.mean()), float(change.double().std()) / math.sqrt(len(labels)) if len(labels) > 1 else math.inf


def describe_choice(change: float, error: float, images: int) -> str:
    """Whether validation images carry the choice of something else; from `loss_change`."""
    low, high = change - 1.96 * error, change + 1.96 * error
    text = f"the loss on {plural(images, 'validation photo')} changes by {change:+.4f} (95% {low:+.4f} .. {high:+.4f})"
    return f"{text}; this may be chance" if low <= 0 <= high else text


def select(run: RunPredictions, split: str, paths: list[str]) -> tuple[Tensor, Tensor]:
    """Calibrated logits and labels of some images of a split."""
    index = {path: i for i, path in enumerate(run.paths[split])}
    rows = torch.tensor([index[path] for path in paths])
    return run.calibrated(split)[rows], run.labels[split][rows]


def compare(first: RunPredictions, second: RunPredictions) -> Comparison:
    """Compares two runs on the test images that they share."""
    paths = common_images([first, second])
    (logits, labels), (second_logits, _) = (select(run, "test", paths) for run in (first, second))
    right, second_right = logits.argmax(1) == labels, second_logits.argmax(1) == labels
    pairs = list(zip(paths, right.tolist(), second_right.tolist(), strict=True))
    only_first = [path for path, one, two in pairs if one and not two]
    only_second = [path for path, one, two in pairs if two and not one]
    p_value, interval = mcnemar(len(only_first), len(only_second)), bootstrap_difference(right, second_right)
    counts = (len(paths), int(right.sum()), int(second_right.sum()))
    return Comparison(*counts, only_first, only_second, p_value, interval)
