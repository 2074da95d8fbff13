"""Features of networks whose last features are no map of channels: tokens, channels last, several scales."""

import pytest
import torch

from flowers_torch.errors import UsageError
from flowers_torch.models.factory import create_model
from flowers_torch.models.heads import classifier_inputs
from flowers_torch.models.inspect.layer_features import features

SWIN = "swin_tiny_patch4_window7_224"
TWO_BLOCKS = {"depths": (1, 1, 1, 1)}


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("test_vit", 160),
        ("deit_tiny_distilled_patch16_224", 224),
        ("crossvit_tiny_240", 240),
        ("coat_tiny", 224),
        ("gmlp_ti16_224", 224),
    ],
)
def test_the_average_of_tokens_is_what_enters_the_classifier(name: str, size: int) -> None:
    torch.manual_seed(0)
    model, images = create_model(name, 3).eval(), torch.randn(2, 3, size, size)
    with torch.no_grad(), classifier_inputs(model) as entered:
        model(images)
    torch.testing.assert_close(features(model, images, pooling="avg"), entered[0])


def test_maps_with_channels_last() -> None:
    torch.manual_seed(0)
    model, images = create_model(SWIN, 3, **TWO_BLOCKS).eval(), torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        last = model.forward_features(images)  # N x 7 x 7 x 768
    torch.testing.assert_close(features(model, images), last.permute(0, 3, 1, 2))
    torch.testing.assert_close(features(model, images, pooling="avg"), last.mean((1, 2)))
    torch.testing.assert_close(features(model, images, pooling="max"), last.amax((1, 2)))
    block = features(model, images, "layers.1", "avg")
    assert block.shape == (2, 192)


def test_tokens_of_a_layer_are_pooled_without_the_class_token() -> None:
    model, images = create_model("test_vit", 3).eval(), torch.randn(2, 3, 160, 160)
    tokens = features(model, images, "blocks.0")
    assert tokens.shape == (2, 101, 64)
    torch.testing.assert_close(features(model, images, "blocks.0", "avg"), tokens[:, 1:].mean(1))
    assert features(model, images, pooling="max").shape == (2, 64)
    assert features(model, images).shape == (2, 101, 64)


def test_several_last_maps() -> None:
    model = create_model("crossvit_tiny_240", 3)
    with pytest.raises(UsageError, match="several last feature maps; fix: use pooling 'avg', or name a layer"):
        features(model, torch.randn(1, 3, 240, 240), pooling="max")
