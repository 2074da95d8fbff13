"""Grad-CAM: heatmaps of the image regions that contribute to a class (Selvaraju et al. 2017).

The gradient is taken at the last feature map (`forward_features`), so only the head runs backward. A
transformer's classifier may read a single token; its gradient is taken one block earlier, where every token
still contributes.
"""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from flowers_torch.errors import UsageError

# The "viridis" color map from no contribution to the largest, interpolated between five of its colors.
COLORS = np.array([[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]])
LEVELS = np.linspace(0, len(COLORS) - 1, 256)
PALETTE = np.stack([np.interp(LEVELS, range(len(COLORS)), channel) for channel in COLORS.T], 1).round()


def grad_cam(model: nn.Module, images: Tensor, targets: Tensor | None = None) -> Tensor:
    """Heatmaps (N, H, W) on the CPU, in 0..1, of preprocessed images (N, 3, H, W) for classes (N,).

    The class is by default the predicted one. A map is all 0 if no region contributes to the class. The network
    runs in inference mode; its modes are restored.

    Raises:
        UsageError: the network has no spatial feature map.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.enable_grad():
            features, logits = _features_and_logits(model, images)
            chosen = logits.argmax(1) if targets is None else targets.to(logits.device)
            (gradient,) = torch.autograd.grad(logits.float()[torch.arange(len(images)), chosen].sum(), features)
    finally:
        for module, training in modes.items():
            module.training = training
    maps, gradients = (_as_map(model, tensor.detach().float()) for tensor in (features, gradient))
    weights = gradients.mean((2, 3), keepdim=True)
    heat = (weights * maps).sum(1, keepdim=True).relu()
    heat = F.interpolate(heat, size=images.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    heat = heat - heat.amin((1, 2), keepdim=True)  # a constant map points nowhere
    return (heat / heat.amax((1, 2), keepdim=True).clamp(min=1e-12)).cpu()


def _features_and_logits(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """The features that the gradient is taken at, and the logits computed from them."""
    with torch.no_grad():
        last = model.forward_features(images)  # type: ignore[operator]
    if last.ndim == 4:
        features = last.requires_grad_()
        return features, model.forward_head(features)  # type: ignore[operator]
    blocks = getattr(model, "blocks", None)
    if last.ndim != 3 or not isinstance(blocks, nn.Sequential) or not len(blocks):
        raise UsageError(f"{type(model).__name__} has no spatial feature map", "use a convolutional network")
    captured: list[Tensor] = []

    def capture(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        captured.append(inputs[0].detach().requires_grad_())
        return (captured[0], *inputs[1:])

    with blocks[-1].register_forward_pre_hook(capture):
        logits = model(images)
    return captured[0], logits


def _as_map(model: nn.Module, tensor: Tensor) -> Tensor:
    """Features as (N, C, H, W), from maps with channels first or last, or from tokens."""
    if tensor.ndim == 3:
        tensor = tensor[:, int(getattr(model, "num_prefix_tokens", 0)) :]
        rows, columns = model.patch_embed.grid_size  # type: ignore[union-attr, misc]
        return tensor.transpose(1, 2).unflatten(2, (rows, columns))
    is_last = tensor.shape[3] == model.num_features != tensor.shape[1]
    return tensor.permute(0, 3, 1, 2) if is_last or getattr(model, "output_fmt", "") == "NHWC" else tensor


def input_to_image(pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Image.Image:
    """Undoes the normalization of a network input (3, H, W)."""
    scale, offset = (torch.tensor(values)[:, None, None] for values in (std, mean))
    values = ((pixels * scale + offset).clamp(0, 1) * 255).round().byte()
    return Image.fromarray(values.permute(1, 2, 0).contiguous().numpy())


def overlay(image: Image.Image, heat: Tensor) -> Image.Image:
    """Blends a heatmap (H, W) over an RGB image of any size, with an opacity of 0.75 where the map is 1."""
    gray = Image.fromarray((heat * 255).round().byte().numpy()).resize(image.size, Image.Resampling.BILINEAR)
    colors = gray.copy()
    colors.putpalette(PALETTE.astype(int).flatten().tolist())
    return Image.composite(colors.convert("RGB"), image, gray.point(lambda level: 0.75 * level))
