"""One-line descriptions of epochs and scores, and table rows of predictions."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from flowers_torch.errors import printable
from flowers_torch.evaluation.metrics import FEW_IMAGES, Scores


def describe_epoch(row: dict[str, Any], epochs: int) -> str:
    """One line for an epoch of the history, with the remaining time of its stage."""
    left = (epochs - row["epoch"]) * row["seconds"]
    remaining = f"{left / 60:.0f} min" if left >= 90 else f"{left:.0f} s"
    parts = (f"{name} loss {row[f'{name}_loss']:.4f} acc {row[f'{name}_accuracy']:.4f}" for name in ("train", "val"))
    return (
        f"  {row['stage']} {row['epoch']}/{epochs}  {'  '.join(parts)}  "
        f"{row['seconds']:.1f} s, {row['images_per_second']:.1f} img/s" + (f", {remaining} left" if left else "")
    )


def describe_scores(scores: Scores, classes: Sequence[str], split: str = "test") -> str:
    """One line: accuracy with its interval, and the class with the lowest recall."""
    low, high = scores.interval()
    text = (
        f"{split:8} accuracy {scores.accuracy:.4f} (95% interval {low:.3f} .. {high:.3f}), "
        f"{scores.correct} of {scores.images} photos, loss {scores.loss:.4f}"
    )
    if weakest := weakest_class(scores):
        label, other = (printable(classes[i], 40) for i in weakest)
        recall = float(scores.by_class()["recall"][weakest[0]])
        text += f"; lowest recall {label} {recall:.2f}, mostly misclassified as {other}"
    return text


def weakest_class(scores: Scores) -> tuple[int, int] | None:
    """The class with the lowest recall and its most frequent wrong prediction; None without errors."""
    if scores.correct == scores.images:
        return None
    weakest = int(scores.by_class()["recall"].nan_to_num(2.0).argmin())
    others = scores.confusion[weakest].clone()
    others[weakest] = -1
    return weakest, int(others.argmax())


def describe_small_classes(scores: Scores, classes: Sequence[str]) -> str:
    """A warning about classes with too few images; empty if there are none."""
    small = scores.small_classes()
    if not small:
        return ""
    names = ", ".join(f"{printable(classes[i], 40)} ({int(scores.confusion[i].sum())})" for i in small[:5])
    more = f" and {len(small) - 5} more" if len(small) > 5 else ""
    few = (
        f"{len(small)} of {len(classes)} classes have under {FEW_IMAGES} photos here, too few for metrics of their own"
    )
    return f"{few}: {names}{more}"


def prediction_rows(
    paths: Sequence[str], logits: Tensor, labels: Tensor, classes: Sequence[str]
) -> list[dict[str, Any]]:
    """A row for each image: file, label, predicted class, its probability, and whether it is correct."""
    probabilities, predicted = logits.softmax(1).max(1)
    rows = zip(paths, labels.tolist(), predicted.tolist(), probabilities.tolist(), strict=True)
    columns = ("file", "label", "predicted", "probability", "correct")
    return [
        dict(zip(columns, (path, classes[label], classes[guess], round(chance, 6), int(guess == label)), strict=True))
        for path, label, guess, chance in rows
    ]
