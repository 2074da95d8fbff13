"""Backbone and head one after the other compute what the network computes; else the network is not split."""

import pytest
import torch
from torch import nn

from flowers_torch.models.factory import create_model
from flowers_torch.models.freeze import apply_rules, rules_for, set_train_mode
from flowers_torch.models.heads import set_head
from flowers_torch.models.split_model import split_model

NETWORKS = [
    ("tf_efficientnet_lite0", 64),
    ("inception_v3", 96),
    ("resnet50", 64),
    ("resnet18", 64),
    ("mobilenetv3_small_100", 64),
    ("convnext_atto", 64),
    ("vit_tiny_patch16_224", 224),
]


@pytest.mark.parametrize(("arch", "size"), NETWORKS)
def test_backbone_and_head_are_the_network(arch: str, size: int) -> None:
    torch.manual_seed(0)
    model = create_model(arch, num_classes=3)
    set_head(model, 3, hidden=8)
    apply_rules(model, rules_for(model, "head"))
    set_train_mode(model)
    modes = [module.training for module in model.modules()]
    split = split_model(model, size)
    assert split is not None and modes == [module.training for module in model.modules()]
    images = torch.randn(2, 3, size, size)
    model.eval()
    split.head.eval()
    features = split.backbone(images)
    assert features.shape == (2, split.width) and not features.requires_grad
    features = split.select(features)
    assert torch.allclose(split.head(features), model(images), rtol=1e-4, atol=1e-5)
    split.head(features).sum().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


class Branches(nn.Module):
    """A network that does more after its classifier, or that gives the classifier feature maps."""

    def __init__(self, maps: bool) -> None:
        super().__init__()
        self.maps, self.conv = maps, nn.Conv2d(3, 3, 1)
        self.fc = nn.Conv2d(3, 2, 1) if maps else nn.Linear(3, 2)

    def get_classifier(self) -> nn.Module:
        return self.fc

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        return self.fc(x).mean((2, 3)) if self.maps else self.fc(x.mean((2, 3))) + x.mean()


@pytest.mark.parametrize("maps", [False, True])
def test_a_network_that_is_not_backbone_then_head_is_not_split(maps: bool) -> None:
    assert split_model(Branches(maps), 8) is None
