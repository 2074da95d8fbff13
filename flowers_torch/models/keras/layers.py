"""The layers of a network as Keras names, counts and orders them, for "freeze the first 249 layers".

The list is derived from the network's traced graph and the name tables of `keras.names`.
"""

import re
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from flowers_torch.errors import UsageError
from flowers_torch.models.inspect.trace import Node, trace
from flowers_torch.models.keras.names import TABLES, has_gamma, rules_of

KINDS = TABLES["kinds"]  # of trace nodes -> Keras's classes
# Keras's class of a layer that is part of another module here, by the end of its name.
EXTRA = {"_pad": "ZeroPadding2D", "_reduce": "Lambda"}
PADS = ("ZeroPad2d", "SamePad2d")


@dataclass(frozen=True)
class KerasLayer:
    """A layer as Keras's `model.layers` lists it."""

    name: str
    kind: str  # Keras's class
    shape: tuple[int, ...]  # batch, height, width, channels
    parameters: int  # as Keras counts: with running statistics, without gammas that Keras lacks
    module: str  # name in the network here; empty where PyTorch has no such layer
    inputs: tuple[str, ...]  # names of the layers that feed it


def keras_layers(model: nn.Module, size: int = 0, head: bool = False) -> list[KerasLayer]:
    """A network's layers in the order of Keras's `model.layers`: by distance from the output.

    Args:
        model: A network that Keras has too.
        size: Image height and width, for the shapes; 0 takes a small one.
        head: Whether to list the layers behind the feature extractor too.

    Raises:
        UsageError: Keras does not have this network.
    """
    rules = rules_of(model)
    if rules is None:
        raise UsageError(f"{type(model).__name__} is not a network of Keras", "see flowers-torch models --keras")
    nodes = trace(model, size or 96, "forward" if head else "forward_features")
    gamma = has_gamma(model)
    graph: list[KerasLayer] = []
    ends: dict[int, str] = {}  # index of a node -> name of its last Keras layer
    counts: Counter[str] = Counter()
    for index, node in enumerate(nodes):
        inputs = tuple(ends[i] for i in node.inputs)
        if node.kind == "add" and rules.shortcut_first:
            inputs = inputs[::-1]
        template = rules.name_of(node.name)
        if template == "" or _is_omitted(node, nodes):
            ends[index] = inputs[0]
            continue
        names = (template or "?").split()  # of the node's Keras layers; `own` is the one that computes it
        own = next(i for i, name in enumerate(names) if _extra_kind(name) is None or node.kind in PADS)
        for i, name in enumerate(names):
            kind = _keras_kind(node) if i == own else _extra_kind(name) or "Reshape"
            name = _numbered(kind, counts) if name == "?" else name
            shape = node.shape if i >= own else _padded(nodes[node.inputs[0]].shape, node)
            shape = shape[:2] if kind.startswith("Global") else (*shape[:1], *shape[2:], shape[1])
            count, module = (_parameters(node, gamma), node.name) if i == own else (0, "")
            graph.append(KerasLayer(name, kind, shape, count, module, inputs))
            inputs = (name,)
        ends[index] = graph[-1].name
    return _in_keras_order(graph)


def keras_prefix(model: nn.Module, count: int) -> list[str]:
    """Names of the modules with parameters in the first `count` layers of Keras's list, the input counted.

    Keras's `for layer in model.layers[:count]: layer.trainable = False` freezes them.

    Raises:
        UsageError: `count` is not between 1 and the number of layers.
    """
    layers = keras_layers(model)
    if not 0 < count <= len(layers):
        what = f"keras:{count} of a network with {len(layers)} Keras layers"
        raise UsageError(what, f"use keras:1 to keras:{len(layers)}")
    return [layer.module for layer in layers[:count] if layer.parameters]


def renumbered(layers: list[KerasLayer]) -> list[KerasLayer]:
    """The layers with a kind and a number as names, as early Keras 3 wrote them into weights files."""
    counts: Counter[str] = Counter()
    return [replace(layer, name=_numbered(layer.kind, counts)) for layer in layers]


def _extra_kind(name: str) -> str | None:
    return next((kind for end, kind in EXTRA.items() if name.endswith(end)), None)


def _padded(shape: tuple[int, ...], node: Node) -> tuple[int, ...]:
    """The shape of an input with the padding of a convolution or pooling."""
    padding: Any = getattr(node.module, "padding", 0)
    rows, columns = padding if isinstance(padding, tuple) else (padding, padding)
    return (*shape[:2], shape[2] + 2 * rows, shape[3] + 2 * columns)


def _is_omitted(node: Node, nodes: list[Node]) -> bool:
    """Whether Keras lacks a node of the head: a dense layer's ReLU, a flatten or dropout without effect."""
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


def _parameters(node: Node, gamma: bool) -> int:
    gamma = gamma or KINDS.get(node.kind) != "BatchNormalization"
    return sum(size for name, size in node.sizes.items() if gamma or not name.endswith("weight"))


def _numbered(kind: str, counts: Counter[str]) -> str:
    """The next default name of a Keras class: MaxPooling2D -> max_pooling2d, max_pooling2d_1, ..."""
    kind = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", kind)
    kind = re.sub(r"([a-z])([A-Z])", r"\1_\2", kind).lower()
    counts[kind] += 1
    return f"{kind}_{counts[kind] - 1}" if counts[kind] > 1 else kind


def _in_keras_order(graph: list[KerasLayer]) -> list[KerasLayer]:
    """Sorted by the longest path to the output, longest first; ties in depth-first order from the output."""
    by_name = {layer.name: layer for layer in graph}
    visited: dict[str, int] = {}
    stack = [graph[-1].name]
    while stack:  # visits the inputs of a layer from left to right
        name = stack.pop()
        if name not in visited:
            visited[name] = len(visited)
            stack += reversed(by_name[name].inputs)
    depth = dict.fromkeys(by_name, 0)
    for layer in reversed(graph):  # the order of execution is topological
        for name in layer.inputs:
            depth[name] = max(depth[name], depth[layer.name] + 1)
    reached = [layer for layer in graph if layer.name in visited]
    return sorted(reached, key=lambda layer: (-depth[layer.name], visited[layer.name]))
