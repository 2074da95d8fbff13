"""Comparison of finished runs on the test images that they share."""

import dataclasses
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

from flowers_torch.errors import UsageError
from flowers_torch.evaluation.comparison import Comparison, common_images, compare, relabeled_images, select
from flowers_torch.evaluation.metrics import score
from flowers_torch.evaluation.predictions import load_predictions
from flowers_torch.report.run_summary import read_history
from flowers_torch.training.checkpoint import MODEL_FILE


@dataclasses.dataclass(frozen=True)
class ComparedRun:
    """A run on the shared images. `own_images` is the number of its test images."""

    run: str
    own_images: int
    accuracy: float
    interval_95: tuple[float, float]
    loss: float
    training_seconds: float
    megabytes: float | None  # None without a weights file


@dataclasses.dataclass(frozen=True)
class RunComparison:
    """All runs, and each pair of them by position with the paired test."""

    images: int
    relabeled: int  # test images that the runs share and label differently; they do not count
    runs: list[ComparedRun]
    pairs: list[tuple[int, int, Comparison]]


def compare_runs(folders: Sequence[Path]) -> RunComparison:
    """Compares two finished runs or more.

    Raises:
        DataError: a run has no predictions, or the runs have no test images in common.
    """
    if len(folders) < 2:
        raise UsageError("compare needs two runs or more", "name another run")
    predictions = [load_predictions(folder) for folder in folders]
    shared = common_images(predictions)
    rows = []
    for folder, one in zip(folders, predictions, strict=True):
        scores, weights = score(*select(one, "test", shared)), folder / MODEL_FILE
        seconds = sum(row.get("seconds", 0) for row in read_history(folder))
        size = weights.stat().st_size / 1e6 if weights.is_file() else None
        of_test = (len(one.paths["test"]), scores.accuracy, scores.interval(), scores.loss)
        rows.append(ComparedRun(str(folder), *of_test, seconds, size))
    pairs = [(i, j, compare(predictions[i], predictions[j])) for i, j in combinations(range(len(folders)), 2)]
    return RunComparison(len(shared), len(relabeled_images(predictions)), rows, pairs)
