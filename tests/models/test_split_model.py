"""Backbone and tail in a row are the network; where they are not, it is not split."""

import pytest
import torch
from torch import nn

from flowers_torch.models.factory import create_model
from flowers_torch.models.freeze import apply_rules, rules_for, set_train_mode
from flowers_torch.models.heads import set_head
from flowers_torch.models.split_model import split_network

SPLITS = [
    ("tf_efficientnet_lite0", "blocks.2", 64),
    ("tf_efficientnet_lite0", "head", 64),
    ("inception_v3", "Mixed_6b", 96),
    ("inception_v3", "head", 96),
    ("resnet50", "stage4", 64),
    ("resnet18", "layer2", 64),
    ("mobilenetv3_small_100", "blocks.3", 64),
    ("convnext_atto", "stages.2", 64),
    ("vit_tiny_patch16_224", "head", 224),
]


def network(arch: str, train: str) -> nn.Module:
    torch.manual_seed(0)
    model = create_model(arch, num_classes=3)
    set_head(model, 3, hidden=8)
    apply_rules(model, rules_for(model, train))
    set_train_mode(model)
    return model


@pytest.mark.parametrize(("arch", "train", "size"), SPLITS)
def test_backbone_and_tail_are_the_network(arch: str, train: str, size: int) -> None:
    model = network(arch, train)
    modes = [module.training for module in model.modules()]
    split = split_network(model, size)
    assert split is not None and modes == [module.training for module in model.modules()]
    images = torch.randn(2, 3, size, size)
    model.eval()
    split.tail.eval()
    maps = split.backbone(images)
    assert not maps.requires_grad
    assert torch.allclose(split.tail(maps), model(images), rtol=1e-4, atol=1e-5)
    split.tail(maps).sum().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


def test_a_network_that_trains_from_the_start_is_not_split() -> None:
    assert split_network(network("test_resnet", "all"), 32) is None


def test_a_network_that_is_more_than_its_blocks_in_a_row_is_not_split() -> None:
    class Skips(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.fc = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Linear(3, 2)

        def get_classifier(self) -> nn.Module:
            return self.fc

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.two(self.one(x)) + x  # the second summand is inside the backbone
            return self.fc(x.mean((2, 3)))

    model = Skips()
    apply_rules(model, [("one.*", 0.0), ("*", 1.0)])
    assert split_network(model, 8) is None
