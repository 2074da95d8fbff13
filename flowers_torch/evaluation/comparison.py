"""Which of two models is better, judged on the same photos: paired tests, and the photos that changed."""

import dataclasses
import math

import torch
from torch import Tensor

from flowers_torch.errors import DataError
from flowers_torch.evaluation.predictions import RunPredictions

RESAMPLES = 10_000


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two models on the same photos; "first" and "second" in the order given."""

    photos: int
    first_correct: int
    second_correct: int
    only_first: list[str]  # photos that the first alone has right
    only_second: list[str]
    p_value: float  # McNemar, exact, two-sided
    interval: tuple[float, float]  # 95% bootstrap interval of second - first, in accuracy

    def verdict(self) -> str:
        """What the numbers allow to say."""
        if self.p_value < 0.05:
            better = "second" if self.second_correct > self.first_correct else "first"
            return f"the {better} is better (p = {self.p_value:.3g})"
        return f"these photos cannot tell them apart (p = {self.p_value:.2g})"


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided p-value that two models err equally often, from the photos on which they differ.

    Under that hypothesis each such photo falls to either side like a fair coin.
    """
    differ, fewer = only_first + only_second, min(only_first, only_second)
    tail = sum(math.comb(differ, k) for k in range(fewer + 1))
    return min(1.0, 2 * tail / 2**differ)


def bootstrap_difference(first: Tensor, second: Tensor, seed: int = 0) -> tuple[float, float]:
    """95% interval of the difference in accuracy, second - first, by drawing the photos anew.

    Args:
        first: Whether the first model has each photo right (N,).
        second: The same of the second.
        seed: Of the draws.
    """
    # A draw of N photos matters only by how many it holds of each kind of difference: -1, 0, 1.
    difference = second.long() - first.long()
    shares = torch.tensor([(difference == d).sum() for d in (-1, 0, 1)], dtype=torch.float64) / len(first)
    generator = torch.Generator().manual_seed(seed)
    # multinomial(N, shares) as two binomials
    count = torch.full((RESAMPLES,), float(len(first)), dtype=torch.float64)
    worse = torch.binomial(count, torch.full_like(count, float(shares[0])), generator)
    rest = 1 - float(shares[0])
    odds = min(1.0, float(shares[2]) / rest) if rest > 0 else 0.0
    better = torch.binomial(count - worse, torch.full_like(count, odds), generator)
    low, high = ((better - worse) / len(first)).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64))
    return float(low), float(high)


def common_photos(runs: list[RunPredictions], part: str = "test") -> list[str]:
    """Photos that are in this part of every run, in the order of the first.

    Raises:
        DataError: there are none, or the runs know different classes.
    """
    if any(run.classes != runs[0].classes for run in runs):
        raise DataError("the runs know different classes", "compare runs of the same data")
    shared = set.intersection(*(set(run.paths[part]) for run in runs))
    if not shared:
        raise DataError(f"the runs have no {part} photo in common", "train them with the same --seed")
    return [path for path in runs[0].paths[part] if path in shared]


def select(run: RunPredictions, part: str, paths: list[str]) -> tuple[Tensor, Tensor]:
    """Calibrated logits and labels of these photos."""
    place = {path: i for i, path in enumerate(run.paths[part])}
    rows = torch.tensor([place[path] for path in paths])
    return run.calibrated(part)[rows], run.labels[part][rows]


def compare(first: RunPredictions, second: RunPredictions, seed: int = 0) -> Comparison:
    """Compares two runs on the test photos that they share."""
    paths = common_photos([first, second])
    (first_logits, labels), (second_logits, _) = (select(run, "test", paths) for run in (first, second))
    first_right, second_right = first_logits.argmax(1) == labels, second_logits.argmax(1) == labels

    def named(which: Tensor) -> list[str]:
        return [paths[i] for i in which.nonzero()[:, 0].tolist()]

    only_first, only_second = named(first_right & ~second_right), named(second_right & ~first_right)
    return Comparison(
        len(paths),
        int(first_right.sum()),
        int(second_right.sum()),
        only_first,
        only_second,
        mcnemar(len(only_first), len(only_second)),
        bootstrap_difference(first_right, second_right, seed),
    )
