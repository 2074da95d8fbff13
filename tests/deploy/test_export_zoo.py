"""Every network of the zoo exports to ONNX and answers there as in PyTorch. Random weights, small photos."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flowers_torch.data.preprocessing import Preprocessing
from flowers_torch.data.sources.demo import FORMS, draw_picture
from flowers_torch.deploy.export import Trial, make_onnx
from flowers_torch.deploy.onnx_file import parse_onnx
from flowers_torch.deploy.parity import PHOTOS
from flowers_torch.models.checkpoint import ModelInfo, build
from flowers_torch.models.registry import REGISTRY

pytestmark = pytest.mark.slow


def photos() -> list[Image.Image]:
    forms = list(FORMS)
    return [draw_picture(forms[i % 6], 128, np.random.default_rng(i)) for i in range(PHOTOS)]


@pytest.mark.parametrize("name", [*sorted(REGISTRY), "tf_efficientnet_lite0"])
def test_it_exports(name: str) -> None:
    pytest.importorskip("onnx", reason="needs the extra onnx")
    size = max(32, REGISTRY[name].min_size) if name in REGISTRY else 64
    torch.manual_seed(0)
    info = ModelInfo(name, ("a", "b", "c"), Preprocessing(size=size))
    network = build(info)
    for module in network.modules():  # statistics of some pictures: else the logits fade away
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        network(torch.randn(4, 3, size, size))
    made = make_onnx(network.eval(), info, Trial(photos(), "drawings"), Path(f"{name}.onnx"))
    assert parse_onnx(made.content, Path(name)).metadata["check"]["photos"] == PHOTOS
