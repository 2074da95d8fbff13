"""timm's networks: image sizes that they are built for, their classifiers, and what to write in place of a name."""

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn

from flowers_torch.data.preprocessing import Preprocessing
from flowers_torch.errors import ModelFileError, UsageError
from flowers_torch.files.tensors import safe_load, safe_save
from flowers_torch.models.checkpoint import ModelInfo, build, unusable
from flowers_torch.models.factory import create_model
from flowers_torch.models.freeze import apply_rules, rules_for
from flowers_torch.models.heads import classifier_names, feature_width, set_head
from flowers_torch.models.registry import find_entry, input_options
from flowers_torch.models.split_model import split_model
from flowers_torch.models.timm_names import TORCHVISION_NAMES
from flowers_torch.models.timm_networks import unseen_border
from flowers_torch.models.weights import load_weights, plan_weights


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        ("vit_tiny_patch16_224", 224, {}),
        ("vit_tiny_patch16_224", 160, {"img_size": 160}),
        ("vit_small_patch14_dinov2", 224, {"img_size": 224}),  # 518 in timm
        ("swin_tiny_patch4_window7_224", 256, {"img_size": 256}),
        ("deit_tiny_distilled_patch16_224", 256, {"img_size": 256}),  # its constructor hands the option on
        ("coatnet_nano_rw_224", 256, {"img_size": 256}),
        ("eva02_tiny_patch14_224", 252, {"img_size": 252}),
        ("convnext_atto", 160, {}),
        ("resnet50", 160, {}),
        ("timm:resnet50", 160, {}),
    ],
)
def test_options_for_a_size(name: str, size: int, expected: dict[str, Any]) -> None:
    assert input_options(name, size) == expected
    info = ModelInfo(name, ("a", "b", "c"), Preprocessing(size), model_options=expected)
    with torch.device("meta"):
        assert build(info).eval()(torch.empty(2, 3, size, size)).shape == (2, 3)


@pytest.mark.parametrize(
    ("name", "size", "options", "fix"),
    [
        ("dla34", 168, {}, "use --size 160 or 192 or 224"),
        ("resnetaa50", 150, {}, "use --size 128 or 160"),
        ("vit_tiny_patch16_224", 160, {"img_size": 192}, "leave out img_size of model_options"),
        ("levit_128s", 100, {}, "use --size 96 or 128"),
    ],
)
def test_a_size_that_does_not_fit_names_those_that_do(name: str, size: int, options: dict[str, Any], fix: str) -> None:
    with pytest.raises(UsageError, match=f"{name} does not take --size {size}: .*{fix}"):
        input_options(name, size, options)


def test_an_encoder_names_the_network_with_a_classifier() -> None:
    with pytest.raises(UsageError, match="without a classifier; fix: use --arch qwen3_vit_88m"):
        input_options("qwen3_vit_88m_enc", 768)


def test_pixels_that_no_patch_sees_are_named() -> None:
    model = create_model("vit_tiny_patch16_224", 2, size=168)
    assert "leave out the last 8 px of 168; --size 160 or 176" in unseen_border(model, 168)
    assert not unseen_border(model, 160) and not unseen_border(nn.Identity(), 161)


def test_weights_of_a_file_are_resampled_by_timm_for_another_size(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    theirs = timm.create_model("test_vit", num_classes=5)  # 160 px
    file = tmp_path / "weights.pth"
    torch.save(theirs.state_dict(), file)
    with caplog.at_level("INFO", "flowers_torch"):
        ours = create_model("test_vit", 5, weights=str(file), size=224)
    assert "position embeddings resampled" in caplog.text and "head loaded" in caplog.text
    theirs.set_input_size(224)
    torch.testing.assert_close(ours.pos_embed, theirs.pos_embed)
    images = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        torch.testing.assert_close(ours.eval()(images), theirs.eval()(images))


def test_weights_of_another_network_are_refused_at_another_size(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    torch.save(timm.create_model("test_vit").state_dict(), file)
    with pytest.raises(ModelFileError, match="does not fit"):
        create_model("vit_tiny_patch16_224", 5, weights=str(file), size=160)


def test_a_run_at_another_size_than_the_run_it_starts_from() -> None:
    plan = plan_weights("vit_tiny_patch16_224", "none")
    assert plan.for_size(160, {"img_size": 160}).for_size(224, {}).options == {}


# Distilled pairs, branches, a convolution, layers in front of the classifier, an auxiliary classifier.
CLASSIFIERS = [
    ("deit_tiny_distilled_patch16_224", 224, ("head", "head_dist")),
    ("levit_128s", 224, ("head.linear", "head_dist.linear")),
    ("efficientformerv2_s0", 224, ("head", "head_dist")),
    ("crossvit_tiny_240", 240, ("head.0", "head.1")),
    ("dla46x_c", 64, ("fc",)),
    ("inception_next_atto", 64, ("head.fc2",)),
    ("repvit_m1", 64, ("head.head.l", "head.head_dist.l")),
    ("cpubone_nano", 64, ("head.classifier.linear",)),
]


@pytest.mark.parametrize(("name", "size", "names"), CLASSIFIERS)
@pytest.mark.parametrize("hidden", [0, 8])
def test_every_kind_of_classifier_is_replaced_and_split_off(
    name: str, size: int, names: tuple[str, ...], hidden: int
) -> None:
    torch.manual_seed(0)
    model = create_model(name, 3)
    set_head(model, 3, hidden)
    assert classifier_names(model) == names
    apply_rules(model, rules_for(model, "head"))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained and all(name.startswith(tuple(f"{one}." for one in names)) for name in trained)
    split = split_model(model.eval(), size)
    assert split is not None
    assert split.width == sum(feature_width(model.get_submodule(name)) for name in names)
    images = torch.randn(3, 3, size, size)
    features = split.backbone(images)
    with torch.inference_mode():
        torch.testing.assert_close(split.head.eval()(features), model(images), rtol=1e-4, atol=1e-5)
    if not hidden:
        weight, bias = torch.randn(3, split.width), torch.randn(3)
        split.head.set_linear(weight, bias)
        with torch.inference_mode():
            torch.testing.assert_close(model(images), features @ weight.T + bias, rtol=1e-3, atol=1e-3)


def test_the_auxiliary_classifier_of_tokens_is_left_out() -> None:
    with torch.device("meta"):
        model = create_model("volo_d1_224", 3)
        set_head(model, 3)
        assert classifier_names(model) == ("head",)
        assert model.eval()(torch.empty(2, 3, 224, 224)).shape == (2, 3)


def test_a_weights_file_fills_a_network_of_two_classifiers(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    theirs = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=1000)
    torch.save(theirs.state_dict(), file)
    ours = create_model("deit_tiny_distilled_patch16_224", 3)
    plan = plan_weights("deit_tiny_distilled_patch16_224", str(file))
    assert load_weights(ours, "deit_tiny_distilled_patch16_224", plan).endswith("head newly initialized")
    assert torch.equal(ours.dist_token, theirs.dist_token)


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("hf_hub:timm/resnet50.a1_in1k", "use --arch resnet50.a1_in1k"),
        ("hf-hub:timm/vit_tiny_patch16_224", "use --arch vit_tiny_patch16_224"),
        ("timm/convnext_atto.d2_in1k", "use --arch convnext_atto.d2_in1k"),
        ("https://huggingface.co/timm/convnext_atto.d2_in1k", "use --arch convnext_atto.d2_in1k"),
        ("hf_hub:someone/else", "a downloaded file as --weights FILE"),
        ("resnet50.a1_in", "resnet50 has no weights 'a1_in': use one of resnet50.a1_in1k"),
        ("timm/resnet50.nope", "resnet50 has no weights 'nope': use one of resnet50"),
        ("tv_resnet50", "timm calls it resnet50.tv_in1k now: use --arch resnet50.tv_in1k"),
        ("vit_base_patch16_224_dino", "use --arch vit_base_patch16_224.dino"),
        ("ResNet50", "use --arch resnet50"),
        ("EfficientNet-B0", "efficientnet_b0"),
        ("vit_b_16", "use --arch vit_base_patch16_224"),
        ("regnet_y_1_6gf", "use --arch regnety_016"),
        ("squeezenet1_1", "timm has no such network"),
    ],
)
def test_what_to_write_in_place_of_a_name(name: str, fix: str) -> None:
    with pytest.raises(UsageError, match=f"no network is called .*{fix}"):
        find_entry(name)


def test_every_name_of_torchvision_is_known_or_explained() -> None:
    assert all(timm.is_model(name) for name in TORCHVISION_NAMES.values())
    for name in torchvision.models.list_models(torchvision.models):
        try:
            find_entry(name)
        except UsageError as error:
            fix = str(error).rpartition("fix: ")[2]
            assert fix.startswith("timm has no such network") or timm.is_model(fix.removeprefix("use --arch ")), name


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("timm:resnet18", {"in_chans": 1}, "'in_chans' is not an option of .*; fix: leave it out: photos are read in"),
        ("resnet50", {"in_chans": 1}, "'in_chans' is not an option of resnet50; fix: leave it out"),
        ("timm:resnet18", {"num_classes": 9}, "'num_classes' is not an option of .*; fix: leave it out"),
        ("timm:resnet18", {"features_only": True}, "'features_only' is not an option .*use flowers-torch features"),
        ("vgg16", {"pretrained": True}, "'pretrained' is not an option of vgg16; fix: use --weights"),
        ("timm:resnet18", {"drop_rat": 0.1}, "'drop_rat' is not .*; fix: use drop_rate or"),
        ("mobilenet", {"alhpa": 0.5}, "'alhpa' is not an option of mobilenet; fix: use alpha"),
        ("timm:resnet18", {"exportable": True}, "'exportable' is not an option .*; fix: use aa_layer, act_layer,"),
        ("timm:resnet18", {"drop_rate": 2}, "cannot be built: dropout probability .* got 2.0; fix: correct drop_rate"),
        ("timm:resnet18", {"global_pool": "bogus"}, "cannot be built: .*bogus; fix: correct global_pool"),
        ("alexnet", {"groups": 7}, "alexnet cannot be built: in_channels must be .*; fix: correct groups"),
        ("mobilenet", {"alpha": -1}, "mobilenet cannot be built: .*; fix: correct alpha"),
    ],
)
def test_options_are_refused_before_an_image_is_read(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        input_options(name, 96, options)


def test_weights_with_a_layer_of_two_names_are_saved(tmp_path: Path) -> None:
    layer = nn.Linear(2, 2)
    safe_save(nn.ModuleDict({"one": layer, "two": layer}).state_dict(), tmp_path / "shared.safetensors", {})
    tensors, _ = safe_load(tmp_path / "shared.safetensors")
    assert torch.equal(tensors["one.weight"], layer.weight) and torch.equal(tensors["two.weight"], layer.weight)


def test_only_the_bounds_of_a_clamp_may_be_infinite() -> None:
    infinite = torch.tensor(float("inf"))
    assert not unusable({"blocks.0.q_proj.input_max": infinite})["not finite"]  # Gemma's
    odd = {"q.input_max": infinite / infinite, "input_max": infinite.repeat(2), "scale": infinite}
    assert unusable(odd)["not finite"] == list(odd)


def test_the_page_s_table_of_foundation_backbones_is_timm_s() -> None:
    page = (Path(__file__).parents[2] / "docs" / "networks.md").read_text(encoding="utf-8")
    section = page.partition("### Foundation backbones")[2].partition("\n##")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines() if line.startswith("| `")]
    assert len(rows) >= 13
    for cell, _, size, license in rows:
        name = cell.split("`")[1]
        config = timm.get_pretrained_cfg(name)
        assert name in timm.list_pretrained() and config is not None, name
        assert size.startswith(str(config.input_size[-1])), name
        assert re.sub(r"\W+", "-", license.lower()).startswith(re.sub(r"\W+", "-", config.license)), name


def test_a_size_for_which_a_table_of_positions_is_too_short() -> None:
    """Only values show that an index into MViTv2's tables is too large; a pass without values succeeds."""
    with pytest.raises(UsageError, match=r"mvitv2_tiny does not take --size 280: index .*; fix: use --size \d+ or "):
        input_options("mvitv2_tiny", 280)
    options = input_options("mvitv2_tiny", 168)
    assert create_model("mvitv2_tiny", 2, size=168, **options).eval()(torch.zeros(1, 3, 168, 168)).shape == (1, 2)
    assert input_options("mvitv2_tiny", 192) == {"img_size": 192}
