"""InceptionV3 against timm's, with both kinds of average pooling."""

import pytest
import timm
import torch

from flowers_torch.models.inception_v3 import InceptionV3


@pytest.fixture(scope="module")
def timm_model():
    torch.manual_seed(0)
    model = timm.create_model("inception_v3", num_classes=5).eval()
    for norm in model.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):  # so that a swapped batch norm changes the logits
            norm.running_mean.normal_(0, 0.2)
            norm.running_var.uniform_(0.5, 2)
            torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
    return model


@pytest.fixture
def images():
    return torch.randn(1, 3, 107, 91, generator=torch.Generator().manual_seed(1))


def test_timms_weights_give_timms_logits(timm_model, images):
    model = InceptionV3(num_classes=5).eval()
    model.load_state_dict(timm_model.state_dict())
    with torch.no_grad():
        expected, found = timm_model(images), model(images)
    assert expected.std() > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


def test_leaving_the_padding_out_of_the_mean_changes_the_features(timm_model, images):
    with_pad, without_pad = InceptionV3(5).eval(), InceptionV3(5, count_include_pad=False).eval()
    for model in (with_pad, without_pad):
        model.load_state_dict(timm_model.state_dict())
    with torch.no_grad():
        a, b = with_pad.forward_features(images), without_pad.forward_features(images)
    assert (a - b).norm() / a.norm() > 0.01
    pools = [m for m in without_pad.modules() if isinstance(m, torch.nn.AvgPool2d)]
    assert len(pools) == 9 and not any(pool.count_include_pad for pool in pools)


def test_timms_contract(images):
    model = InceptionV3(num_classes=3).eval()
    features = model.forward_features(images)
    assert features.shape[1] == model.num_features == 2048
    assert model.forward_head(features, pre_logits=True).shape == (1, 2048)
    torch.testing.assert_close(model(images), model.forward_head(features))
    model.reset_classifier(7)
    assert model(images).shape == (1, 7) and model.get_classifier().out_features == model.num_classes == 7
    model.reset_classifier(0, "max")
    torch.testing.assert_close(model(images), features.amax((2, 3)))


def test_every_parameter_gets_a_gradient():
    model = InceptionV3(num_classes=3)
    model(torch.randn(2, 3, 75, 75)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_a_new_head_keeps_the_mode(images):
    model = InceptionV3(num_classes=3, drop_rate=0.5).eval()
    model.reset_classifier(7)
    assert not any(module.training for module in model.modules())
