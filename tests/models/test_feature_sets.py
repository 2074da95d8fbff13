"""Feature sets of transformers: what enters the classifier, for each kind of network."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowers_torch.data.preprocessing import Preprocessing
from flowers_torch.errors import ModelFileError, UsageError
from flowers_torch.models.checkpoint import ModelInfo, build, load_classifier, save_classifier
from flowers_torch.models.factory import create_model
from flowers_torch.models.feature_sets import offered_sets, set_features
from flowers_torch.models.heads import classifier_names, logits_and_features, set_head
from flowers_torch.models.own import register_module
from flowers_torch.models.split_model import split_model

TINY: dict[str, Any] = {"depth": 5, "embed_dim": 24, "num_heads": 2, "img_size": 32, "patch_size": 8}
WITH_CLASS = ("", "mean", "token+mean", "last4")
POOLED_MEAN = ("", "token", "token+mean", "last4")
KINDS = {
    "vit_tiny_patch16_224": WITH_CLASS,
    "vit_small_patch14_reg4_dinov2": WITH_CLASS,
    "beit_base_patch16_224": POOLED_MEAN,  # averages the patches, in front of its last norm
    "vit_small_patch16_dinov3": POOLED_MEAN,
    "vit_base_patch16_siglip_224": ("", "mean"),  # pools by attention, without a class token
    "vit_base_patch16_siglip_gap_224": ("",),
    "deit_tiny_distilled_patch16_224": ("",),  # two classifiers
}
SHAPED = [name for name, offered in KINDS.items() if len(offered) > 1]


def tiny(arch: str) -> Any:
    torch.manual_seed(0)
    model = create_model(arch, 3, weights=None, **TINY).eval()
    for parameter in model.parameters():  # a norm with equal weights would hide in which place it stands
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def expected(model: Any, images: Tensor, name: str) -> Tensor:
    """The features of a set, by timm's own intermediate outputs."""
    with torch.no_grad():
        if not name:
            return model.forward_head(model.forward_features(images), pre_logits=True)
        found = model.forward_intermediates(
            images, 4, return_prefix_tokens=True, norm=True, output_fmt="NLC", intermediates_only=True
        )
        if not model.num_prefix_tokens:
            return model.fc_norm(found[-1].mean(1))
        tokens = [model.fc_norm(prefix[:, 0]) for _, prefix in found]
        mean = model.fc_norm(found[-1][0].mean(1))
        sets = {"token": tokens[-1:], "mean": [mean], "token+mean": [tokens[-1], mean], "last4": [*tokens, mean]}
        return torch.cat(sets[name], 1)


@pytest.mark.parametrize("arch", KINDS)
def test_each_set_is_what_timm_computes_there(arch: str) -> None:
    plain, images = tiny(arch), torch.randn(2, 3, 32, 32)
    assert offered_sets(plain) == KINDS[arch]
    split = split_model(plain, 32)
    assert split is not None and tuple(split.sets) == (KINDS[arch] if len(KINDS[arch]) > 1 else ())
    every = split.backbone(images)
    for name in split.sets:
        wanted = expected(plain, images, name)
        torch.testing.assert_close(split.select(every, name), wanted)
        model = copy.deepcopy(plain)
        set_features(model, name)
        set_head(model, 3)
        assert model.state_dict().keys() == plain.state_dict().keys() and type(model).__name__ == type(plain).__name__
        assert offered_sets(model) == KINDS[arch] and classifier_names(model) == ("head",)
        with torch.no_grad():
            logits, features = logits_and_features(model, images)
            torch.testing.assert_close(features, wanted)
            torch.testing.assert_close(copy.deepcopy(model)(images), logits)
            torch.testing.assert_close(model.head(wanted), logits)
        again = split_model(model, 32)
        assert again is not None and again.feature_set == name
        torch.testing.assert_close(again.head(again.select(again.backbone(images))), logits)
        set_features(model, "")
        model.reset_classifier(3)
        model.load_state_dict(plain.state_dict())
        assert type(model) is type(plain) and torch.equal(model(images), plain(images))


@pytest.mark.parametrize("arch", ["tf_efficientnet_lite0", "timm:tf_efficientnet_lite0", "efficientnet_b0"])
def test_an_efficientnet_offers_the_maps_inside_its_last_blocks(arch: str) -> None:
    torch.manual_seed(0)
    plain, images, inside = create_model(arch, 3, weights=None).eval(), torch.randn(2, 3, 64, 64), []
    assert offered_sets(plain) == ("", "wide")
    model = copy.deepcopy(plain)
    set_features(model, "wide")
    set_head(model, 3)
    assert model.state_dict().keys() == plain.state_dict().keys()
    for name in ("blocks.5.1", "blocks.5.2", "blocks.5.3", "blocks.6.0"):
        block: Any = plain.get_submodule(name)
        activation = getattr(block, "act2", block.bn2)  # timm's norms contain theirs
        activation.register_forward_hook(lambda module, inputs, output: inside.append(output.mean((2, 3))))
    with torch.no_grad():
        own = plain.forward_head(plain.forward_features(images), pre_logits=True)  # type: ignore[operator]
        wanted = torch.cat([own, *inside], 1)
        logits, features = logits_and_features(model, images)
        torch.testing.assert_close(features, wanted.sign() * wanted.abs().sqrt(), rtol=1e-2, atol=1e-2)
        assert torch.equal(model(images), logits)
        for each, name in ((plain, ""), (model, "wide")):
            split = split_model(each, 64)
            assert split is not None and split.feature_set == name
            every = split.backbone(images)
            assert torch.equal(every, wanted) and torch.equal(split.select(every, ""), own)
            assert torch.equal(split.select(every, "wide"), features)
            torch.testing.assert_close(split.head(split.select(every)), each(images))
    model.zero_grad()
    model(images * 0).sum().backward()  # most activations are 0
    gradients = [parameter.grad for name, parameter in model.named_parameters() if not name.startswith("classifier")]
    assert all(gradient is not None and bool(gradient.isfinite().all()) for gradient in gradients)
    set_features(model, "")
    model.reset_classifier(3)  # type: ignore[operator]
    assert type(model) is type(plain) and offered_sets(model) == ("", "wide")


@pytest.mark.parametrize("arch", ["swin_tiny_patch4_window7_224", "convnext_atto", "mobilenetv3_small_100", "resnet50"])
def test_other_networks_have_their_own_features_only(arch: str) -> None:
    with torch.device("meta"):
        assert offered_sets(create_model(arch, 3, weights=None)) == ("",)


def test_a_network_of_the_user_has_its_own_features_only() -> None:
    name = register_module(nn.Sequential(nn.Conv2d(3, 4, 8), nn.Flatten(), nn.Linear(4, 2)), size=8)
    model = create_model(name, 3)
    assert offered_sets(model) == ("",)
    with pytest.raises(UsageError, match="OwnNetwork has no feature set 'token'; fix: use none, or leave it out"):
        set_features(model, "token")


INFO = ModelInfo("test_vit", ("a", "b", "c"), Preprocessing(32), model_options={"img_size": 32}, features="last4")


def test_a_file_says_which_set_its_classifier_takes(tmp_path: Path) -> None:
    model, path, images = build(INFO).eval(), tmp_path / "model.safetensors", torch.randn(2, 3, 32, 32)
    save_classifier(model.state_dict(), INFO, path)
    again, info = load_classifier(path)
    assert info == INFO and torch.equal(again(images), model(images))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"features": "last5"}, "not a valid weights file of this package: .*features"),
        ({"features": 4}, "not a valid weights file of this package: .*features"),
        ({"features": "token"}, "has no feature set 'token'; fix: use mean or token[+]mean or last4, or leave it out"),
        ({"features": "mean"}, "does not fit VisionTransformer: 1 of another shape"),
        ({"arch": "test_convnext", "model_options": {}}, "ConvNeXt has no feature set 'last4'"),
    ],
)
def test_a_set_that_does_not_fit_is_refused(changes: dict[str, Any], reason: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_classifier(build(INFO).state_dict(), dataclasses.replace(INFO, **changes), path)
    with pytest.raises(ModelFileError, match=reason) as caught:
        load_classifier(path)
    assert "\n" not in str(caught.value)
