"""Wrong labels that were planted are found; nothing is made of good ones."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from flowers_torch.evaluation.probe import out_of_fold
from flowers_torch.evaluation.suspects import Suspect, find_suspects


def test_by_hand() -> None:
    probabilities = torch.tensor([[0.9, 0.1], [0.7, 0.3], [0.1, 0.9], [0.4, 0.6], [0.2, 0.8]])
    labels = torch.tensor([0, 0, 0, 1, 1])  # the third looks like class 1
    (found,) = find_suspects(probabilities, labels)
    assert (found.index, found.label, found.better) == (2, 0, 1)
    assert (found.own, found.other) == (pytest.approx(0.1), pytest.approx(0.9))


def test_a_class_without_photos_claims_none() -> None:
    assert find_suspects(torch.tensor([[0.2, 0.8], [0.3, 0.7]]), torch.tensor([0, 0])) == []


def planted(
    photos: int = 400, classes: int = 5, share: float = 0.05
) -> tuple[torch.Tensor, torch.Tensor, set[int]]:
    generator = torch.Generator().manual_seed(3)
    truth = torch.arange(photos) % classes
    features = 2.2 * torch.eye(classes).repeat(1, 3)[truth] + torch.randn(
        photos, 3 * classes, generator=generator
    )
    wrong = torch.randperm(photos, generator=generator)[: round(share * photos)]
    labels = truth.clone()
    labels[wrong] = (
        truth[wrong] + 1 + torch.randint(classes - 1, wrong.shape, generator=generator)
    ) % classes
    return features, labels, set(wrong.tolist())


def test_planted_wrong_labels_are_found() -> None:
    features, labels, wrong = planted()
    found = find_suspects(out_of_fold(features, labels, 5), labels)
    first = {s.index for s in found[: len(wrong)]}
    assert len(first & wrong) >= 0.8 * len(wrong)
    assert len({s.index for s in found} & wrong) >= 0.8 * len(found)
    assert all(a.own - a.other <= b.own - b.other for a, b in zip(found, found[1:], strict=False))
    assert isinstance(found[0], Suspect)


CLEANLAB = """
import sys, numpy as np
from cleanlab.filter import find_label_issues
content = np.load(sys.argv[1])
labels, probabilities = content["labels"], content["probabilities"]
found = find_label_issues(labels, probabilities, filter_by="confident_learning", n_jobs=1)
np.save(sys.argv[2], found)
"""


@pytest.mark.slow
def test_cleanlab_finds_the_same(tmp_path: Path) -> None:
    """cleanlab runs in a Python of its own, named by CLEANLAB_PYTHON (`pip install cleanlab` there)."""
    python = os.environ.get("CLEANLAB_PYTHON", sys.executable)
    if subprocess.run([python, "-c", "import cleanlab"], capture_output=True).returncode:
        pytest.skip("needs cleanlab: set CLEANLAB_PYTHON to a Python that has it")
    features, labels, _ = planted(1000)
    probabilities = out_of_fold(features, labels, 5)
    np.savez(
        tmp_path / "in.npz", labels=labels.numpy(), probabilities=probabilities.numpy().astype(np.float64)
    )
    command = [python, "-c", CLEANLAB, str(tmp_path / "in.npz"), str(tmp_path / "out.npy")]
    subprocess.run(command, check=True, capture_output=True)
    theirs = set(np.flatnonzero(np.load(tmp_path / "out.npy")).tolist())
    ours = {s.index for s in find_suspects(probabilities, labels)}
    assert len(ours & theirs) >= 0.9 * len(ours | theirs), (len(ours), len(theirs), len(ours & theirs))
