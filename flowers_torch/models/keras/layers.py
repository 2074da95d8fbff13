"""The layers of a network as Keras names, counts and orders them.

Keras lists a model's layers by their distance from the output, not by order of execution, and names those
that the author did not name by counting. "Freeze the first 249 layers" means that list, so it is worked
out here from the network's own graph, with the names from a table (`keras_names`).
"""

import re
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

from timm.models.inception_resnet_v2 import InceptionResnetV2
from torch import nn

from flowers_torch.errors import UsageError
from flowers_torch.models.inception_v3 import InceptionV3
from flowers_torch.models.inspect.trace import Node, trace
from flowers_torch.models.keras.names import rules_of

# PyTorch's classes and operations -> Keras's classes.
KINDS = {
    "input": "InputLayer",
    "Conv2d": "Conv2D",
    "Conv2dSame": "Conv2D",
    "SeparableConv2d": "SeparableConv2D",
    "BatchNorm2d": "BatchNormalization",
    "batch_norm": "BatchNormalization",
    "ReLU": "Activation",
    "ReLU6": "ReLU",
    "MaxPool2d": "MaxPooling2D",
    "MaxPool2dSame": "MaxPooling2D",
    "AvgPool2d": "AveragePooling2D",
    "AdaptiveAvgPool2d": "GlobalAveragePooling2D",
    "AdaptiveMaxPool2d": "GlobalMaxPooling2D",
    "FastAdaptiveAvgPool2d": "GlobalAveragePooling2D",
    "ZeroPad2d": "ZeroPadding2D",
    "SamePad2d": "ZeroPadding2D",
    "Crop2d": "Cropping2D",
    "Linear": "Dense",
    "add": "Add",
    "cat": "Concatenate",
    "mul": "Multiply",
    "flatten": "Flatten",
    "dropout": "Dropout",
}
# What the further names of a rule stand for: layers that Keras has and the network does inside another.
EXTRA = ((re.compile(r".*_pad"), "ZeroPadding2D"), (re.compile(r".*_reduce"), "Lambda"))

# Networks whose batch norms have no gamma in Keras (scale=False); ours is one there and stays one.
WITHOUT_GAMMA = (InceptionV3, InceptionResnetV2)


@dataclass(frozen=True)
class KerasLayer:
    """A layer as `model.layers` of Keras lists it."""

    name: str
    kind: str  # Keras's class
    shape: tuple[int, ...]  # batch, height, width, channels
    parameters: int  # as Keras counts: with running mean and variance, without a gamma that Keras lacks
    module: str  # name in the network here; empty where Keras has a layer and PyTorch has none
    inputs: tuple[str, ...]  # names of the layers that feed it


def keras_count(model: nn.Module) -> int:
    """Parameters as Keras counts them: with running statistics, without gammas that Keras does not have."""
    total = sum(p.numel() for p in model.parameters())
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            total += 2 * module.num_features - (module.num_features if not has_gamma(model) else 0)
    return total


def has_gamma(model: nn.Module) -> bool:
    """Whether this network's batch norms have a gamma in Keras."""
    return not isinstance(model, WITHOUT_GAMMA)


def keras_layers(model: nn.Module, size: int = 0, head: bool = False) -> list[KerasLayer]:
    """A network's layers in the order of Keras's `model.layers`.

    Args:
        model: A network of the zoo that keras.applications has too.
        size: Height and width of the picture, for the shapes; 0 takes a small one.
        head: Whether the layers behind the feature extractor are listed too.

    Raises:
        UsageError: Keras does not have this network.
    """
    rules = rules_of(model)
    if rules is None:
        raise UsageError(
            f"{type(model).__name__} is none of Keras's networks", "see flowers-torch models --keras"
        )
    nodes = trace(model, size or 96, "forward" if head else "forward_features")
    sizes = {name: t.numel() for name, t in (*model.named_parameters(), *model.named_buffers())}
    gamma = has_gamma(model)
    graph: list[KerasLayer] = []
    ends: dict[int, str] = {}  # index of a node -> name of the Keras layer that ends it
    counts: Counter[str] = Counter()
    for index, node in enumerate(nodes):
        inputs = tuple(ends[i] for i in node.inputs)
        if node.kind == "add" and rules.shortcut_first:
            inputs = inputs[::-1]
        template = rules.name_of(node.name)
        if template == "" or _is_silent(node, nodes):  # part of another layer in Keras
            ends[index] = inputs[0]
            continue
        names = (template or "?").split()
        own = next(i for i, name in enumerate(names) if _extra_kind(name) is None or node.kind in PADS)
        for i, name in enumerate(names):
            kind = _keras_kind(node) if i == own else _extra_kind(name) or "Reshape"
            if name == "?":
                name = _numbered(kind, counts)
            count = _parameters(node, sizes, gamma) if i == own else 0
            channels_first = node.shape if i >= own else _padded(nodes[node.inputs[0]].shape, node)
            shape = (*channels_first[:1], *channels_first[2:], channels_first[1])
            if kind.startswith("Global"):
                shape = node.shape[:2]
            graph.append(KerasLayer(name, kind, shape, count, node.name if i == own else "", inputs))
            inputs = (name,)
        ends[index] = graph[-1].name
    return _in_keras_order(graph)


PADS = ("ZeroPad2d", "SamePad2d")


def _extra_kind(name: str) -> str | None:
    return next((kind for pattern, kind in EXTRA if pattern.fullmatch(name)), None)


def _padded(shape: tuple[int, ...], node: Node) -> tuple[int, ...]:
    """Shape of a picture within the padding of a convolution or pooling."""
    padding: Any = getattr(node.module, "padding", 0)
    rows, columns = padding if isinstance(padding, tuple) else (padding, padding)
    return (*shape[:2], shape[2] + 2 * rows, shape[3] + 2 * columns)


def _is_silent(node: Node, nodes: list[Node]) -> bool:
    """What the head has and Keras has not: a ReLU behind a dense layer is that layer's own activation, a
    flattening behind a global pooling does nothing, a dropout of nothing neither."""
    before = KINDS.get(nodes[node.inputs[0]].kind, "") if node.inputs else ""
    return (
        (node.kind == "ReLU" and before == "Dense")
        or (node.kind in ("flatten", "Flatten") and before.startswith("Global"))
        or (isinstance(node.module, nn.Dropout) and node.module.p == 0)
    )


def _keras_kind(node: Node) -> str:
    module = node.module
    if isinstance(module, nn.Conv2d) and 1 < module.groups == module.in_channels:
        return "DepthwiseConv2D"
    return KINDS.get(node.kind, node.kind)


def _parameters(node: Node, sizes: dict[str, int], gamma: bool) -> int:
    unwanted: tuple[str, ...] = ("num_batches_tracked",)
    if not gamma and KINDS.get(node.kind) == "BatchNormalization":
        unwanted += ("weight",)
    return sum(sizes[name] for name in node.tensors if not name.endswith(unwanted))


def _numbered(kind: str, counts: Counter[str]) -> str:
    """The next name of a class by Keras's rule: MaxPooling2D -> max_pooling2d, max_pooling2d_1, ..."""
    kind = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", kind)
    kind = re.sub(r"([a-z])([A-Z])", r"\1_\2", kind).lower()
    counts[kind] += 1
    return f"{kind}_{counts[kind] - 1}" if counts[kind] > 1 else kind


def _in_keras_order(graph: list[KerasLayer]) -> list[KerasLayer]:
    """Sorted by depth, the longest way to the output first, ties as a search from the output meets them."""
    by_name = {layer.name: layer for layer in graph}
    met: dict[str, int] = {}
    waiting = [graph[-1].name]
    while waiting:  # depth first, from the output, each layer's inputs from left to right
        name = waiting.pop()
        if name not in met:
            met[name] = len(met)
            waiting += reversed(by_name[name].inputs)
    depth = dict.fromkeys(by_name, 0)
    for layer in reversed(graph):  # order of execution is an order of dependence
        for name in layer.inputs:
            depth[name] = max(depth[name], depth[layer.name] + 1)
    reached = [layer for layer in graph if layer.name in met]
    return sorted(reached, key=lambda layer: (-depth[layer.name], met[layer.name]))


def keras_prefix(model: nn.Module, count: int) -> list[str]:
    """Names of the modules whose parameters are in the first `count` of Keras's layers.

    `for layer in model.layers[:count]: layer.trainable = False` of Keras freezes the parameters
    `<name>.*` of these names here. The input counts as a layer.

    Raises:
        UsageError: more layers than there are, or none.
    """
    layers = keras_layers(model)
    if not 0 < count <= len(layers):
        raise UsageError(
            f"keras:{count} of a network with {len(layers)} Keras layers",
            f"use keras:1 to keras:{len(layers)}",
        )
    return [layer.module for layer in layers[:count] if layer.parameters]


def renumbered(layers: list[KerasLayer]) -> list[KerasLayer]:
    """The same layers with only their kinds and numbers as names: what Keras 3 writes into weights files."""
    counts: Counter[str] = Counter()
    result = []
    for layer in layers:
        result.append(replace(layer, name=_numbered(layer.kind, counts)))
    return result
