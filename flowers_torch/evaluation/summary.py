"""Results in plain words, and as rows for a table."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flowers_torch.errors import printable
from flowers_torch.evaluation.metrics import Scores


def describe_epoch(row: dict[str, Any], epochs: int) -> str:
    """One line for an epoch of the history."""
    return (
        f"  {row['stage']} {row['epoch']}/{epochs}  "
        f"train loss {row['train_loss']:.4f} acc {row['train_accuracy']:.4f}  "
        f"val loss {row['val_loss']:.4f} acc {row['val_accuracy']:.4f}  "
        f"{row['seconds']:.1f} s, {row['images_per_second']:.1f} img/s"
    )


def describe_scores(scores: Scores, classes: Sequence[str]) -> str:
    """One line: accuracy with its interval, and the weakest class with what it is taken for."""
    low, high = scores.interval()
    text = (
        f"test     accuracy {scores.accuracy:.4f} (95% interval {low:.3f} .. {high:.3f}), "
        f"{scores.correct} of {scores.photos} photos, loss {scores.loss:.4f}"
    )
    if scores.correct == scores.photos:
        return text
    weakest = int(torch.where(scores.recalls().isnan(), 2.0, scores.recalls()).argmin())
    others = scores.confusion[weakest].clone()
    others[weakest] = -1
    return text + (
        f"; weakest {printable(classes[weakest], 40)} {float(scores.recalls()[weakest]):.2f}, "
        f"mostly taken for {printable(classes[int(others.argmax())], 40)}"
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
