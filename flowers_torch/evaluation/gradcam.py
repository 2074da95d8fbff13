"""Grad-CAM: which places of a photo spoke for a class, for any network with timm's contract.

Selvaraju et al. 2017. The gradient is taken at the last feature map (`forward_features`), so that only the
head is run backwards. Transformers, whose classifier may read one token alone, are looked at one block
earlier, where every token still matters.
"""

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from flowers_torch.errors import UsageError

# Colours of the overlay, from no influence to the most: dark blue, green, yellow ("viridis", sampled).
COLOURS = torch.tensor(
    [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]], dtype=torch.float32
)


def grad_cam(model: nn.Module, images: Tensor, targets: Tensor | None = None) -> Tensor:
    """Maps of influence, in inference mode; the network is left as it was.

    Args:
        model: The network.
        images: Inputs (N, 3, H, W), prepared as the network wants them, on its device.
        targets: Class for each image (N,); the likeliest one if None.

    Returns:
        Maps (N, H, W) on the CPU, each from 0 to 1; all 0 where no place speaks for the class.

    Raises:
        UsageError: the network has no map of places.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.enable_grad():
            features, logits = _features_and_logits(model, images)
            chosen = logits.argmax(1) if targets is None else targets.to(logits.device)
            (gradient,) = torch.autograd.grad(
                logits.float()[torch.arange(len(images)), chosen].sum(), features
            )
    finally:
        for module, training in modes.items():
            module.training = training
    maps, slopes = (_as_map(model, tensor.detach().float()) for tensor in (features, gradient))
    weights = slopes.mean((2, 3), keepdim=True)
    heat = (weights * maps).sum(1, keepdim=True).relu()
    heat = F.interpolate(heat, size=images.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    heat = heat - heat.amin((1, 2), keepdim=True)  # what speaks for it everywhere points nowhere
    return (heat / heat.amax((1, 2), keepdim=True).clamp(min=1e-12)).cpu()


def _features_and_logits(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """The map that the gradient is taken at, and the logits that follow from it."""
    with torch.no_grad():
        last = model.forward_features(images)  # type: ignore[operator]
    if last.ndim == 4:
        features = last.requires_grad_()
        return features, model.forward_head(features)  # type: ignore[operator]
    blocks = getattr(model, "blocks", None)
    if last.ndim != 3 or not isinstance(blocks, nn.Sequential) or not len(blocks):
        raise UsageError(f"{type(model).__name__} has no map of places", "use a convolutional network")
    kept: list[Tensor] = []

    def start_here(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        kept.append(inputs[0].detach().requires_grad_())
        return (kept[0], *inputs[1:])

    hook = blocks[-1].register_forward_pre_hook(start_here)
    try:
        logits = model(images)
    finally:
        hook.remove()
    return kept[0], logits


def _as_map(model: nn.Module, tensor: Tensor) -> Tensor:
    """Features as (N, C, H, W), from maps with channels first or last, or from tokens."""
    if tensor.ndim == 3:
        tensor = tensor[:, int(getattr(model, "num_prefix_tokens", 0)) :]
        rows, columns = model.patch_embed.grid_size  # type: ignore[union-attr, misc]
        return tensor.transpose(1, 2).unflatten(2, (rows, columns))
    channels_last = getattr(model, "output_fmt", "NCHW") == "NHWC" or (
        tensor.shape[3] == model.num_features != tensor.shape[1]
    )
    return tensor.permute(0, 3, 1, 2) if channels_last else tensor


def seen_picture(pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Image.Image:
    """A network's input (3, H, W) as the picture that it stands for."""
    scale, centre = (torch.tensor(values)[:, None, None] for values in (std, mean))
    values = ((pixels * scale + centre).clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(values.permute(1, 2, 0).contiguous().numpy())


def overlay(image: Image.Image, heat: Tensor, strength: float = 0.75) -> Image.Image:
    """Lays a map of influence over the picture that the network saw.

    Args:
        image: RGB.
        heat: Map (H, W) between 0 and 1; resized to the image.
        strength: Opacity of the colours where the influence is largest.
    """
    grey = Image.fromarray((heat * 255).round().to(torch.uint8).numpy())
    values = torch.frombuffer(
        bytearray(grey.resize(image.size, Image.Resampling.BILINEAR).tobytes()), dtype=torch.uint8
    )
    place = values.float() / 255 * (len(COLOURS) - 1)
    low = place.floor().long().clamp(max=len(COLOURS) - 2)
    colours = torch.lerp(COLOURS[low], COLOURS[low + 1], (place - low)[:, None])
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).float().view(-1, 3)
    opacity = strength * (values.float() / 255)[:, None]
    mixed = torch.lerp(pixels, colours, opacity).round().to(torch.uint8)
    return Image.frombytes("RGB", image.size, mixed.numpy().tobytes())
