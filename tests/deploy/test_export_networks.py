"""Every network of the registry exports to ONNX and computes the same there, on small images."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flowers_torch.data.preprocessing import Preprocessing
from flowers_torch.data.sources.demo import FORMS, draw_picture
from flowers_torch.deploy.export import PARITY_IMAGES, VerificationData, export_onnx
from flowers_torch.deploy.onnx_file import parse_onnx
from flowers_torch.models.checkpoint import ModelInfo, build
from flowers_torch.models.registry import REGISTRY

pytestmark = pytest.mark.slow


def drawings() -> list[Image.Image]:
    forms = list(FORMS)
    return [draw_picture(forms[i % 6], 128, np.random.default_rng(i)) for i in range(PARITY_IMAGES)]


SETS = ["test_vit/last4", "test_vit/token+mean", "test_vit/mean", "test_vit3/mean", "tf_efficientnet_lite0/wide"]


@pytest.mark.parametrize("name", [*sorted(REGISTRY), *SETS])
def test_it_exports(name: str) -> None:
    pytest.importorskip("onnx", reason="needs the extra onnx")
    # From 32 pixels the last map is one pixel. Batch norm over four values then amplifies the last bits in Lite1 to 4.
    size = max(32, REGISTRY[name].min_size) if name in REGISTRY and "lite" not in name else 96
    torch.manual_seed(0)
    arch, _, features = name.partition("/")
    options = {"img_size": size} if "vit" in arch else {}
    info = ModelInfo(arch, ("a", "b", "c"), Preprocessing(size=size), model_options=options, features=features)
    network = build(info)
    for module in network.modules():  # set the statistics, or the logits vanish
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        network(torch.randn(4, 3, size, size))
    exported = export_onnx(network.eval(), info, VerificationData(drawings(), "drawings"), Path(f"{arch}.onnx"))
    assert parse_onnx(exported.content, Path(name)).metadata["parity"]["images"] == PARITY_IMAGES
