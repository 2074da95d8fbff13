"""Heads: linear, hidden, batch norm, sigmoid; outputs with auxiliary logits."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from flowers_torch.errors import UsageError
from flowers_torch.models.factory import create_model
from flowers_torch.models.heads import classifier_names, main_and_auxiliary, set_head


@pytest.mark.parametrize("arch", ["test_resnet", "test_efficientnet", "test_vit", "test_convnext"])
@pytest.mark.parametrize("hidden", [0, 16])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("norm", [False, True])
def test_any_network_gets_a_head(arch: str, hidden: int, dropout: float, norm: bool) -> None:
    model = create_model(arch, num_classes=10)
    set_head(model, 5, hidden, dropout, norm)
    assert model.eval()(torch.randn(2, 3, 160, 160)).shape == (2, 5)
    linear = [m for m in model.get_submodule(classifier_names(model)[0]).modules() if isinstance(m, nn.Linear)]
    assert [layer.out_features for layer in linear] == ([hidden] if hidden else []) + [5]


def test_auxiliary_logits_are_split_off() -> None:
    main, extra = torch.zeros(2, 3), torch.ones(2, 3)
    assert main_and_auxiliary(main) == (main, ())
    assert main_and_auxiliary((main, extra)) == (main, (extra,))


@pytest.mark.parametrize(("arch", "hidden"), [("happy_model", 0), ("test_resnet", 8)])
def test_a_sigmoid_head_is_the_single_output_of_keras(arch: str, hidden: int) -> None:
    model = create_model(arch, num_classes=10, **({"input_size": 32} if arch == "happy_model" else {}))
    set_head(model, 2, hidden, sigmoid=True)
    classifier = model.get_submodule(classifier_names(model)[0])
    assert [m.out_features for m in classifier.modules() if isinstance(m, nn.Linear)][-1] == 1
    single: list[torch.Tensor] = []
    classifier.get_submodule("out").register_forward_hook(lambda module, inputs, output: single.append(output))
    logits = model.eval()(torch.randn(4, 3, 32, 32))
    z, labels = single[0][:, 0], torch.tensor([0, 1, 1, 0])
    torch.testing.assert_close(logits.softmax(1)[:, 1], z.sigmoid())
    binary = F.binary_cross_entropy_with_logits(z, labels.float())
    torch.testing.assert_close(F.cross_entropy(logits, labels), binary)


def test_happy_model_with_a_sigmoid_head_has_the_count_of_keras() -> None:
    model = create_model("happy_model", num_classes=2)
    set_head(model, 2, sigmoid=True)
    buffers = sum(b.numel() for name, b in model.named_buffers() if "num_batches" not in name)
    assert sum(p.numel() for p in model.parameters()) == 37_569 and buffers == 64


def test_a_sigmoid_head_for_three_classes_is_an_error() -> None:
    with pytest.raises(UsageError, match="tells two classes apart, not 3"):
        set_head(create_model("test_resnet"), 3, sigmoid=True)
