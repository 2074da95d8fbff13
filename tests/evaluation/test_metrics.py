"""Scores against their definitions and against scikit-learn."""

import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from flowers_torch.evaluation.metrics import (
    Scores,
    describe_epoch,
    describe_scores,
    describe_small_classes,
    prediction_rows,
    score,
    upper_limit,
    wilson,
)

LOGITS = torch.tensor([[2.0, 0, 0], [0, 2.0, 0], [0, 2.0, 1], [0, 0, 2.0], [3.0, 0, 1]])
LABELS = torch.tensor([0, 1, 2, 2, 0])


def test_scores() -> None:
    scores = score(LOGITS, LABELS)
    assert (scores.images, scores.correct, scores.accuracy) == (5, 4, 0.8)
    assert scores.confusion.tolist() == [[2, 0, 0], [0, 1, 0], [0, 1, 1]]
    assert scores.by_class()["recall"].tolist() == [1, 1, 0.5]
    assert scores.by_class()["precision"].tolist() == [1, 0.5, 1]
    assert scores.in_top == (4, 5, 5)
    assert scores.loss == pytest.approx(float(F.cross_entropy(LOGITS, LABELS)))


def test_json_of_a_class_without_images() -> None:
    values = score(LOGITS[:2], LABELS[:2]).to_dict(("a", "b", "c"))
    assert values["recall"] == {"a": 1.0, "b": 1.0, "c": None} == values["f1"]
    assert values["precision"]["c"] == 0 and values["support"]["c"] == 0
    assert values["interval_95"] == [pytest.approx(0.342, abs=1e-3), 1.0]
    assert values["macro"] == {"precision": 1.0, "recall": 1.0, "f1": 1.0}


def random_case(seed: int, classes: int, images: int) -> tuple[torch.Tensor, torch.Tensor, Scores]:
    rng = np.random.default_rng(seed)
    labels = torch.from_numpy(rng.integers(0, classes, images))
    logits = torch.from_numpy(rng.normal(0, 3, (images, classes)))
    logits[torch.arange(images), labels] += rng.choice([0.0, 3.0])
    return logits, labels, score(logits, labels)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(2, 12), st.integers(1, 80))
def test_equal_to_scikit_learn(seed: int, classes: int, images: int) -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    logits, labels, scores = random_case(seed, classes, images)
    probabilities = logits.softmax(1).numpy()
    truth, predicted = labels.numpy(), logits.argmax(1).numpy()
    every = np.arange(classes)
    present = np.unique(truth)
    assert scores.accuracy == pytest.approx(sklearn.accuracy_score(truth, predicted))
    assert (scores.confusion.numpy() == sklearn.confusion_matrix(truth, predicted, labels=every)).all()
    assert scores.loss == pytest.approx(sklearn.log_loss(truth, probabilities, labels=every))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on classes without photos
        report = sklearn.precision_recall_fscore_support(truth, predicted, labels=every, zero_division=0)
        for name, expected in zip(("precision", "recall", "f1", "support"), report, strict=True):
            assert scores.by_class()[name][present].numpy() == pytest.approx(expected[present])
        for kind in ("macro", "weighted"):
            expected = sklearn.precision_recall_fscore_support(
                truth, predicted, labels=present, average=kind, zero_division=0
            )
            assert list(scores.averages()[kind].values()) == pytest.approx(expected[:3])
    for k, count in enumerate(scores.in_top, start=1):
        best = np.argsort(-probabilities, axis=1)[:, :k]
        assert count == (best == truth[:, None]).any(1).sum()
    distances = ((probabilities - np.eye(classes)[truth]) ** 2).sum(1)
    assert scores.brier == pytest.approx(distances.mean())
    if classes == 2 and len(present) == 2:
        assert scores.brier == pytest.approx(2 * sklearn.brier_score_loss(truth, probabilities[:, 1]))


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(2, 6), st.integers(2, 60))
def test_the_order_of_images_does_not_matter(seed: int, classes: int, images: int) -> None:
    logits, labels, scores = random_case(seed, classes, images)
    order = torch.randperm(images, generator=torch.Generator().manual_seed(seed))
    again = score(logits[order], labels[order])
    assert again.correct == scores.correct and torch.equal(again.confusion, scores.confusion)
    assert again.loss == pytest.approx(scores.loss) and again.brier == pytest.approx(scores.brier)


@pytest.mark.parametrize(
    ("correct", "images", "low", "high"),
    [(263, 272, 0.9384, 0.9825), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (50, 100, 0.4038, 0.5962)],
)
def test_wilson_by_known_values(correct: int, images: int, low: float, high: float) -> None:
    assert wilson(correct, images) == pytest.approx((low, high), abs=1e-4)


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 500), st.data())
def test_wilson_equals_scipy(images: int, data: st.DataObject) -> None:
    stats = pytest.importorskip("scipy.stats")
    correct = data.draw(st.integers(0, images))
    expected = stats.binomtest(correct, images).proportion_ci(0.95, method="wilson")
    low, high = wilson(correct, images)
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-4)
    assert 0 <= low <= correct / images <= high <= 1


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 500), st.data(), st.sampled_from([0.05, 0.001, 0.5]))
def test_the_upper_limit_equals_scipy(images: int, data: st.DataObject, alpha: float) -> None:
    stats = pytest.importorskip("scipy.stats")
    errors = data.draw(st.integers(0, images))
    expected = stats.beta.ppf(1 - alpha, errors + 1, images - errors) if errors < images else 1.0
    assert upper_limit(errors, images, alpha) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("images", range(1, 300))
def test_an_interval_contains_its_accuracy(images: int) -> None:
    assert wilson(0, images)[0] == 0 and wilson(images, images)[1] == 1


def test_the_weakest_class_is_reported() -> None:
    text = describe_scores(score(LOGITS, LABELS), ("rose", "iris", "tulip\n"))
    assert "0.8000" in text and "lowest recall tulip\\n 0.50, 1 of 1 misclassified as iris" in text and "\n" not in text
    assert "lowest recall" not in describe_scores(score(LOGITS[:2], LABELS[:2]), ("a", "b", "c"))


def test_small_classes_give_a_warning() -> None:
    text = describe_small_classes(score(LOGITS, LABELS), ("rose", "iris", "tulip"))
    assert text.startswith("3 of 3 classes have under 10 photos") and "iris (1)" in text
    enough = score(LOGITS.repeat(10, 1), LABELS.repeat(10))
    assert describe_small_classes(enough, ("rose", "iris", "tulip")) == ""


def test_prediction_rows() -> None:
    rows = prediction_rows(["a.jpg", "b.jpg"], LOGITS[1:3], LABELS[1:3], ("x", "y", "z"))
    assert [row["predicted"] for row in rows] == ["y", "y"] and [row["correct"] for row in rows] == [1, 0]
    assert rows[0]["probability"] == pytest.approx(float(LOGITS[1].softmax(0)[1]), abs=1e-6)


def test_the_line_of_an_epoch() -> None:
    row = {
        "stage": "head",
        "epoch": 1,
        "train_loss": 1,
        "train_accuracy": 0.5,
        "val_loss": 2,
        "val_accuracy": 0.25,
    }
    text = describe_epoch(row | {"seconds": 3.0, "images_per_second": 7.0}, 2)
    assert "head 1/2" in text and "acc 0.2500" in text and "7.0 img/s, 3 s left" in text
    assert "left" not in describe_epoch(row | {"seconds": 3.0, "images_per_second": 7.0}, 1)
