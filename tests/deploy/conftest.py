"""One small model, exported once: exporting takes seconds."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flowers_torch.deploy.export import Trial, make_onnx
from flowers_torch.deploy.parity import PHOTOS
from flowers_torch.evaluation.unsure import fit_familiar, make_trust
from flowers_torch.models.classifier import Record, build, load_classifier, save_classifier
from flowers_torch.models.zoo import Preprocessing

HOSTILE = ("</script><img src=x onerror=window.hacked=1>", "\u202etulip\x1b[31m", "rose \U0001f339 \ud800")


@dataclasses.dataclass(frozen=True)
class Small:
    """A weights file, its record and its network, and what it is tried on."""

    file: Path
    record: Record
    network: torch.nn.Module
    trial: Trial


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    torch.manual_seed(0)
    features, labels = torch.randn(8, 64), torch.arange(8) % 2
    familiar = fit_familiar(features, labels, torch.randn(8, 64))
    record = Record(
        "cifar_resnet",
        HOSTILE,
        Preprocessing(size=32, mean=(0.5,) * 3, std=(0.5,) * 3, crop=0.8),
        model_options={"depth": 8},
        weights="/home/somebody/secret.h5",
        licence="mit",
        temperature=0.5,
        trust=make_trust([(0.9, 4, 0), (0.4, 10, 2)], familiar),
    )
    file = tmp_path_factory.mktemp("small") / "model.safetensors"
    save_classifier(build(record).state_dict(), record, file)
    draw = np.random.default_rng(0)
    photos = [
        Image.fromarray(draw.integers(0, 256, (40 + i % 3, 50 - i % 2, 3), dtype=np.uint8))
        for i in range(PHOTOS)
    ]
    return Small(file, record, load_classifier(file)[0], Trial(photos, "noise"))


@pytest.fixture(scope="session")
def onnx_bytes(small: Small) -> bytes:
    """Takes photos."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"needs {package}, of the extra onnx")
    return make_onnx(small.network, small.record, small.trial, Path("model.onnx"), photos=True).content
