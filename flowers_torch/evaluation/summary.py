"""Results in plain words, and as rows for a table."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flowers_torch.errors import printable
from flowers_torch.evaluation.metrics import FEW_PHOTOS, Scores


def describe_epoch(row: dict[str, Any], epochs: int) -> str:
    """One line for an epoch of the history, with the time that the rest of its stage will take."""
    left = (epochs - row["epoch"]) * row["seconds"]
    still = f"{left / 60:.0f} min" if left >= 90 else f"{left:.0f} s"
    return (
        f"  {row['stage']} {row['epoch']}/{epochs}  "
        f"train loss {row['train_loss']:.4f} acc {row['train_accuracy']:.4f}  "
        f"val loss {row['val_loss']:.4f} acc {row['val_accuracy']:.4f}  "
        f"{row['seconds']:.1f} s, {row['images_per_second']:.1f} img/s" + (f", {still} left" if left else "")
    )


def describe_scores(scores: Scores, classes: Sequence[str], part: str = "test") -> str:
    """One line: accuracy with its interval, and the weakest class with what it is taken for."""
    low, high = scores.interval()
    text = (
        f"{part:8} accuracy {scores.accuracy:.4f} (95% interval {low:.3f} .. {high:.3f}), "
        f"{scores.correct} of {scores.photos} photos, loss {scores.loss:.4f}"
    )
    weakest = weakest_class(scores)
    if weakest is None:
        return text
    label, other = weakest
    return text + (
        f"; weakest {printable(classes[label], 40)} {float(scores.recalls()[label]):.2f}, "
        f"mostly taken for {printable(classes[other], 40)}"
    )


def weakest_class(scores: Scores) -> tuple[int, int] | None:
    """The class that is recognised least and what it is mostly taken for; None where nothing went wrong."""
    if scores.correct == scores.photos:
        return None
    weakest = int(torch.where(scores.recalls().isnan(), 2.0, scores.recalls()).argmin())
    others = scores.confusion[weakest].clone()
    others[weakest] = -1
    return weakest, int(others.argmax())


def describe_small_classes(scores: Scores, classes: Sequence[str]) -> str:
    """A warning about classes with too few photos; empty where there is none."""
    small = scores.small_classes()
    if not small:
        return ""
    named = ", ".join(f"{printable(classes[i], 40)} ({int(scores.supports()[i])})" for i in small[:5])
    more = f" and {len(small) - 5} more" if len(small) > 5 else ""
    return (
        f"{len(small)} of {len(classes)} classes have under {FEW_PHOTOS} photos here, too few for numbers of "
        f"their own: {named}{more}"
    )


def prediction_rows(
    paths: Sequence[str], logits: Tensor, labels: Tensor, classes: Sequence[str]
) -> list[dict[str, Any]]:
    """A row for each photo: file, label, predicted class, its probability, and whether that is right."""
    probabilities, predicted = logits.softmax(1).max(1)
    rows = zip(paths, labels.tolist(), predicted.tolist(), probabilities.tolist(), strict=True)
    return [
        {
            "file": path,
            "label": classes[label],
            "predicted": classes[guess],
            "probability": round(probability, 6),
            "right": int(guess == label),
        }
        for path, label, guess, probability in rows
    ]
