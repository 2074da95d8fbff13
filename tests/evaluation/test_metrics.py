"""Scores against their definitions."""

import pytest
import torch
import torch.nn.functional as F

from flowers_torch.evaluation.metrics import score, wilson
from flowers_torch.evaluation.summary import describe_epoch, describe_scores, prediction_rows

LOGITS = torch.tensor([[2.0, 0, 0], [0, 2.0, 0], [0, 2.0, 1], [0, 0, 2.0], [3.0, 0, 1]])
LABELS = torch.tensor([0, 1, 2, 2, 0])


def test_scores() -> None:
    scores = score(LOGITS, LABELS)
    assert (scores.photos, scores.correct, scores.accuracy) == (5, 4, 0.8)
    assert scores.confusion.tolist() == [[2, 0, 0], [0, 1, 0], [0, 1, 1]]
    assert scores.recalls().tolist() == [1, 1, 0.5]
    assert scores.loss == pytest.approx(float(F.cross_entropy(LOGITS, LABELS)))


def test_json_of_a_class_without_photos() -> None:
    values = score(LOGITS[:2], LABELS[:2]).to_dict(("a", "b", "c"))
    assert values["recall"] == {"a": 1.0, "b": 1.0, "c": None}
    assert values["interval_95"] == [pytest.approx(0.342, abs=1e-3), 1.0]


@pytest.mark.parametrize(
    ("correct", "photos", "low", "high"),
    [(263, 272, 0.9384, 0.9825), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (50, 100, 0.4038, 0.5962)],
)
def test_wilson_by_known_values(correct: int, photos: int, low: float, high: float) -> None:
    assert wilson(correct, photos) == pytest.approx((low, high), abs=1e-4)


def test_the_weakest_class_is_named() -> None:
    text = describe_scores(score(LOGITS, LABELS), ("rose", "iris", "tulip\n"))
    assert "0.8000" in text and "weakest tulip\\n 0.50, mostly taken for iris" in text and "\n" not in text
    assert "weakest" not in describe_scores(score(LOGITS[:2], LABELS[:2]), ("a", "b", "c"))


def test_rows() -> None:
    rows = prediction_rows(["a.jpg", "b.jpg"], LOGITS[1:3], LABELS[1:3], ("x", "y", "z"))
    assert [row["predicted"] for row in rows] == ["y", "y"] and [row["right"] for row in rows] == [1, 0]
    assert rows[0]["probability"] == pytest.approx(float(LOGITS[1].softmax(0)[1]), abs=1e-6)


def test_an_epoch_s_line() -> None:
    row = {
        "stage": "head",
        "epoch": 1,
        "train_loss": 1,
        "train_accuracy": 0.5,
        "val_loss": 2,
        "val_accuracy": 0.25,
    }
    text = describe_epoch(row | {"seconds": 3.0, "images_per_second": 7.0}, 2)
    assert "head 1/2" in text and "acc 0.2500" in text and "7.0 img/s" in text
