"""Grad-CAM: heatmaps peak at the region that decides the class."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from flowers_torch.errors import UsageError
from flowers_torch.evaluation.gradcam import grad_cam, overlay
from flowers_torch.models.factory import create_model
from flowers_torch.training.linear_probe import fit_logistic_regression


def planted(count: int, size: int, side: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, list[tuple[int, int]]]:
    """Noise images; every second one has a bright square and belongs to class 1."""
    generator = torch.Generator().manual_seed(seed)
    images = 0.3 * torch.randn(count, 3, size, size, generator=generator)
    places = torch.randint(size - side, (count, 2), generator=generator).tolist()
    labels = torch.arange(count) % 2
    for image, label, (top, left) in zip(images, labels, places, strict=True):
        if label:
            image[:, top : top + side, left : left + side] += 2.0
    return images, labels, [(int(top), int(left)) for top, left in places]


def with_fitted_head(arch: str, images: torch.Tensor, labels: torch.Tensor) -> nn.Module:
    """A network with random layers and a fitted classifier, so that only the square decides."""
    torch.manual_seed(0)
    model = create_model(arch, 2, size=images.shape[-1]).eval()
    with torch.no_grad():
        features = model.forward_head(model.forward_features(images), pre_logits=True).flatten(1)  # type: ignore[operator]
        probe = fit_logistic_regression(features, labels, 2)
        classifier: nn.Linear = model.get_classifier()  # type: ignore[operator]
        classifier.weight.copy_(probe.weight)
        classifier.bias.copy_(probe.bias)
    return model


@pytest.mark.parametrize("arch", ["test_resnet", "cifar_resnet", "test_efficientnet", "test_vit"])
def test_the_map_peaks_at_the_planted_patch(arch: str) -> None:
    size = {"test_vit": 160}.get(arch, 96)
    side = size // 4
    images, labels, _ = planted(60, size, side, seed=1)
    model = with_fitted_head(arch, images, labels)
    images, labels, places = planted(20, size, side, seed=2)
    ones = labels == 1
    heat = grad_cam(model, images[ones], torch.ones(int(ones.sum()), dtype=torch.long))
    assert heat.shape == (10, size, size) and float(heat.min()) >= 0 and float(heat.max()) == 1
    hits = 0
    for heatmap, (top, left) in zip(heat, [p for p, one in zip(places, ones, strict=True) if one], strict=True):
        row, column = divmod(int(heatmap.argmax()), size)
        margin = side // 2  # size of a cell of the feature map
        hits += top - margin <= row < top + side + margin and left - margin <= column < left + side + margin
    assert hits >= 8, hits


def test_the_network_is_unchanged() -> None:
    model = create_model("test_resnet", 3).train()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    grad_cam(model, torch.randn(2, 3, 64, 64))
    assert model.training and not any(p.requires_grad or p.grad is not None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_channels_last_maps() -> None:
    """Swin returns channels-last features."""
    torch.manual_seed(0)
    model = create_model("swin_tiny_patch4_window7_224", 2, embed_dim=12, depths=(1, 1, 1, 1))
    assert grad_cam(model, torch.randn(1, 3, 224, 224)).shape == (1, 224, 224)


@pytest.mark.parametrize(
    "arch",
    [
        "gmlp_ti16_224",
        "cait_xxs24_224",
        "xcit_nano_12_p8_224",
        "pit_ti_224",
        "crossvit_tiny_240",
        "levit_128s",
        "tnt_s_legacy_patch16_224",
    ],
)
def test_tokens_without_a_grid_of_their_own(arch: str) -> None:
    torch.manual_seed(0)
    size = 240 if "240" in arch else 224
    heat = grad_cam(create_model(arch, 2), torch.randn(2, 3, size, size))
    assert heat.shape == (2, size, size) and bool(heat.isfinite().all())


def test_a_network_without_a_feature_map() -> None:
    class Flat(nn.Sequential):
        pass

    with pytest.raises(UsageError, match="Flat has no spatial feature map"):
        grad_cam(Flat(nn.Flatten(), nn.Linear(3 * 8 * 8, 2)), torch.randn(1, 3, 8, 8))


def test_the_overlay_colors_the_heatmap() -> None:
    image = Image.new("RGB", (40, 20), (100, 100, 100))
    heat = torch.zeros(10, 10)
    heat[:, 5:] = 1
    pixels = np.asarray(overlay(image, heat)).astype(int)
    assert pixels.shape == (20, 40, 3)
    assert (pixels[:, :8] == 100).all() and (pixels[:, 32:, 0] > 150).all()
