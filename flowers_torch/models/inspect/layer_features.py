"""Features: the output of any layer of a network, for another classifier or a search."""

from torch import Tensor, nn

from flowers_torch.errors import UsageError
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
        pooling: "avg" or "max" over the map, "flatten" (channel, row, column), or "" for the map itself.

    Returns:
        N x C x H x W, or N x features with a pooling or from a layer without a map.

    Raises:
        UsageError: unknown layer or pooling.
    """
    if pooling not in POOLINGS:
        raise UsageError(f"no pooling {pooling!r}", f"use one of {', '.join(map(repr, POOLINGS))}")
    output: Tensor
    if layer:
        output = layer_output(model, images, module_name(model, layer))
    else:
        with at_inference(model):
            output = model.forward_features(images)  # type: ignore[operator]
    if output.ndim == 4 and pooling in ("avg", "max"):
        return output.mean((2, 3)) if pooling == "avg" else output.amax((2, 3))
    return output.flatten(1) if pooling == "flatten" else output


def module_name(model: nn.Module, layer: str) -> str:
    """The module that Keras calls `layer`, or `layer` itself if it is not a Keras name."""
    if layer in dict(model.named_modules()) or rules_of(model) is None:
        return layer
    ours = {row.name: row.module for row in keras_layers(model) if row.module}
    return ours.get(layer, layer)
