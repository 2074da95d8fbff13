"""Grad-CAM: heatmaps of the image regions that contribute to a class (Selvaraju et al. 2017).

The gradient is taken at the last block whose output has places that all may count: a map, or tokens of patches. A
transformer's classifier may read a single token; then it is an earlier block, where every token still contributes.
"""

import contextlib
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from flowers_torch.errors import UsageError
from flowers_torch.models.heads import shared_copy
from flowers_torch.models.inspect.layer_features import as_map

# The "inferno" color map from no contribution to the largest, interpolated between five of its colors.
COLORS = np.array([[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]])
LEVELS = np.linspace(0, len(COLORS) - 1, 256)
PALETTE = np.stack([np.interp(LEVELS, range(len(COLORS)), channel) for channel in COLORS.T], 1).round()


def grad_cam(model: nn.Module, images: Tensor, targets: Tensor | None = None) -> Tensor:
    """Heatmaps (N, H, W) on the CPU, in 0..1, of preprocessed images (N, 3, H, W) for classes (N,).

    The class is by default the predicted one. A map is all 0 if no region contributes to the class. A copy of the
    network runs in inference mode, so that other threads may use the network.

    Raises:
        UsageError: the network has no spatial feature map.
    """
    model = shared_copy(model).eval()
    with torch.enable_grad():
        outputs, logits = _spatial_outputs(model, images)
        chosen = logits.argmax(1) if targets is None else targets.to(logits.device)
        score = logits.float()[torch.arange(len(images)), chosen].sum()
        maps, gradients = _last_that_counts(model, outputs, score)
    weights = gradients.mean((2, 3), keepdim=True)
    heat = (weights * maps).sum(1, keepdim=True).relu()
    heat = F.interpolate(heat, size=images.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    heat = heat - heat.amin((1, 2), keepdim=True)  # a constant map points nowhere
    return (heat / heat.amax((1, 2), keepdim=True).clamp(min=1e-12)).cpu()


def _spatial_outputs(model: nn.Module, images: Tensor) -> tuple[list[Tensor], Tensor]:
    """The outputs of the network's blocks in the order of the forward pass, and the logits."""
    outputs: list[Tensor] = []

    def keep(module: nn.Module, inputs: object, output: object) -> None:
        # TNT also computes maps of the patches, which are more than the images.
        found = (tensor for tensor in _tensors(output) if tensor.requires_grad and tensor.ndim)
        outputs.extend(tensor for tensor in found if len(tensor) == len(images))

    with contextlib.ExitStack() as stack:
        for module in _blocks(model):
            stack.enter_context(module.register_forward_hook(keep))
        # An image that asks for a gradient gives one to every output, even where all parameters are frozen.
        logits = model(images.detach().requires_grad_())
    return outputs, logits


def _blocks(model: nn.Module) -> Iterator[nn.Module]:
    """The children of a network, and the members of those that are sequences, down to their blocks."""
    for name, child in model.named_children():
        yield child
        is_wrapped = name == getattr(model, "wrapped", None)  # of `OwnNetwork`
        if is_wrapped or isinstance(child, nn.Sequential | nn.ModuleList) or hasattr(child, "blocks"):
            yield from _blocks(child)


def _tensors(output: object) -> list[Tensor]:
    if isinstance(output, list | tuple):
        return [tensor for item in output for tensor in _tensors(item)]
    return [output] if isinstance(output, Tensor) else []


def _last_that_counts(model: nn.Module, outputs: list[Tensor], score: Tensor) -> tuple[Tensor, Tensor]:
    """The last output with a gradient beyond its class tokens, as a map, and the gradient (N, C, H, W).

    The last map of all where the score depends on none, as with a classifier of zeros.
    """
    last = None
    for output in reversed(outputs):
        features = as_map(model, output.detach().float())
        if features is None:
            continue
        (gradient,) = torch.autograd.grad(score, output, retain_graph=True, allow_unused=True)
        gradients = None if gradient is None else as_map(model, gradient.float())
        if gradients is not None and bool(gradients.any()):
            return features, gradients
        if gradients is not None and last is None:
            last = features, gradients
    if last is not None:
        return last
    raise UsageError(f"{type(model).__name__} has no spatial feature map", "use another network")


def input_to_image(pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Image.Image:
    """Undoes the normalization of a network input (3, H, W)."""
    scale, offset = (torch.tensor(values)[:, None, None] for values in (std, mean))
    values = ((pixels * scale + offset).clamp(0, 1) * 255).round().byte()
    return Image.fromarray(values.permute(1, 2, 0).contiguous().numpy())


def overlay(image: Image.Image, heat: Tensor) -> Image.Image:
    """Blends a heatmap (H, W) over the gray form of an RGB image of any size, so that its colors show on any subject.

    The opacity is 0.75 where the map is 1.
    """
    levels = Image.fromarray((heat * 255).round().byte().numpy()).resize(image.size, Image.Resampling.BILINEAR)
    colors = levels.copy()
    colors.putpalette(PALETTE.astype(int).flatten().tolist())
    return Image.composite(colors.convert("RGB"), image.convert("L").convert("RGB"), levels.point(lambda n: 0.75 * n))
