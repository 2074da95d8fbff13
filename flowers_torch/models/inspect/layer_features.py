"""Features: the output of any layer of a network, for another classifier or a search."""

import math

from torch import Tensor, nn

from flowers_torch.errors import UsageError
from flowers_torch.models.heads import classifier_inputs
from flowers_torch.models.inspect.trace import at_inference, layer_output
from flowers_torch.models.keras.layers import keras_layers
from flowers_torch.models.keras.names import rules_of

POOLINGS = ("", "avg", "max", "flatten")


def features(model: nn.Module, images: Tensor, layer: str = "", pooling: str = "") -> Tensor:
    """Features of a batch of images, computed in inference mode without gradients.

    Args:
        model: Any network with timm's contract.
        images: N x C x H x W, preprocessed for the network.
        layer: Name of a layer, block or operation as `flowers-torch layers` prints it, Keras's name of it
            (`block4_pool`, `mixed7`), or "" for the last feature map.
        pooling: "avg" or "max" over the map, "flatten" (channel, row, column), or "" for the map itself. Of a
            network of tokens "avg" without a layer is what enters its classifier, such as the class token.

    Returns:
        N x C x H x W, or N x features with a pooling or from a layer without a map.

    Raises:
        UsageError: unknown layer or pooling.
    """
    if pooling not in POOLINGS:
        raise UsageError(f"no pooling {pooling!r}", f"use one of {', '.join(map(repr, POOLINGS))}")
    output: Tensor | list[Tensor]
    if layer:
        output = layer_output(model, images, module_name(model, layer))
    else:
        with at_inference(model):
            output = model.forward_features(images)  # type: ignore[operator]
    if not layer and pooling == "avg" and (not isinstance(output, Tensor) or output.ndim == 3):
        with at_inference(model), classifier_inputs(model) as entered:
            pooled: Tensor = model.forward_head(output)  # type: ignore[operator]
        return entered[0] if entered else pooled
    if not isinstance(output, Tensor):
        raise UsageError(f"{type(model).__name__} has several last feature maps", "use pooling 'avg', or name a layer")
    found = as_map(model, output) if output.ndim == 4 or pooling in ("avg", "max") else None
    found = output if found is None else found
    if found.ndim == 4 and pooling in ("avg", "max"):
        return found.mean((2, 3)) if pooling == "avg" else found.amax((2, 3))
    return found.flatten(1) if pooling == "flatten" else found


def as_map(model: nn.Module, tensor: Tensor) -> Tensor | None:
    """Features as (N, C, H, W), from square maps with channels first or last, or from tokens; else None."""
    if tensor.ndim == 4 and tensor.shape[1] == tensor.shape[2] != tensor.shape[3] and tensor.shape[1] > 1:
        return tensor.permute(0, 3, 1, 2)
    if tensor.ndim == 4 and tensor.shape[2] == tensor.shape[3] > 1:
        is_last = getattr(model, "output_fmt", "") == "NHWC" and tensor.shape[1] == tensor.shape[2]
        return tensor.permute(0, 3, 1, 2) if is_last else tensor
    if tensor.ndim != 3:
        return None
    prefix = int(getattr(model, "num_prefix_tokens", 0))  # class tokens and registers stand in front
    side = math.isqrt(max(tensor.shape[1] - prefix, 0))
    if side * side + prefix != tensor.shape[1]:
        side = math.isqrt(tensor.shape[1])
        prefix = tensor.shape[1] - side * side
    return tensor[:, prefix:].transpose(1, 2).unflatten(2, (side, side)) if side > 1 else None


def module_name(model: nn.Module, layer: str) -> str:
    """The module that Keras calls `layer`, or `layer` itself if it is not a Keras name."""
    if layer in dict(model.named_modules()) or rules_of(model) is None:
        return layer
    ours = {row.name: row.module for row in keras_layers(model) if row.module}
    return ours.get(layer, layer)
