"""Heads: the network's own linear one, the seed's, and answers with auxiliary logits."""

import pytest
import torch
from torch import nn

from flowers_torch.models.heads import classifier_name, main_and_auxiliary, set_head
from flowers_torch.models.zoo import create_model


@pytest.mark.parametrize("arch", ["test_resnet", "test_efficientnet", "test_vit", "test_convnext"])
@pytest.mark.parametrize("hidden", [0, 16])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("norm", [False, True])
def test_any_network_gets_a_head(arch: str, hidden: int, dropout: float, norm: bool) -> None:
    model = create_model(arch, num_classes=10)
    set_head(model, 5, hidden, dropout, norm)
    assert model.eval()(torch.randn(2, 3, 160, 160)).shape == (2, 5)
    linear = [m for m in model.get_submodule(classifier_name(model)).modules() if isinstance(m, nn.Linear)]
    assert [layer.out_features for layer in linear] == ([hidden] if hidden else []) + [5]


def test_auxiliary_logits_are_told_apart() -> None:
    main, extra = torch.zeros(2, 3), torch.ones(2, 3)
    assert main_and_auxiliary(main) == (main, ())
    assert main_and_auxiliary((main, extra)) == (main, (extra,))
