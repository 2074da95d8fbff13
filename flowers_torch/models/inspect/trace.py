"""The layers of any network in order of execution, and their connections.

The network runs once on the "meta" device, which has shapes and no values. Hooks and a `TorchFunctionMode`
record every layer and every tensor operation between layers. The summary table, the drawing, Keras's layer
list and the features of a named layer are derived from this trace.
"""

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from flowers_torch.errors import UsageError
from flowers_torch.models.tf_layers import SeparableConv2d

# Modules with children that count as one layer.
WHOLE = (SeparableConv2d, nn.MultiheadAttention)
# Modules that do nothing if they have no children.
EMPTY = (nn.Identity, nn.Sequential)


@dataclass(frozen=True)
class Node:
    """One layer, or one operation between layers."""

    name: str  # the module's path, or the surrounding module's path and the operation
    kind: str  # class of the module or name of the operation; "input" for the image
    shape: tuple[int, ...]  # of the output, batch first
    inputs: tuple[int, ...]  # indices of the nodes that feed it
    tensors: tuple[str, ...]  # names of its parameters and buffers in the state dict
    module: nn.Module | None = None  # None for an operation


class _Found(Exception):
    """Ends the forward pass after the target layer."""


class _Recorder(TorchFunctionMode):
    """Records each call of a tensor function and, through hooks, of a module.

    With a `target` it records nothing and ends the forward pass with the output of the layer of that name.
    """

    def __init__(self, model: nn.Module, target: str = "") -> None:
        super().__init__()
        self.paths = {module: name for name, module in model.named_modules()}
        tensors = (*model.named_parameters(), *model.named_buffers())
        self.own = {id(tensor): name for name, tensor in tensors}
        self.nodes: list[Node] = []
        self.producer: dict[int, int] = {}  # id of a tensor -> index of the node that returned it
        self.alive: list[Any] = []  # keeps the tensors, because Python reuses the ids of deleted ones
        self.stack: list[str] = []  # paths of the running modules
        self.inside_layer = 0
        self.used_names: Counter[str] = Counter()
        self.counted: set[str] = set()
        self.target = target
        self.output: Tensor | None = None  # of the target

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if not self.inside_layer and _tensors(out):
            operation = getattr(func, "__name__", "op").strip("_")
            # `a += b` and `a + b` are the same layer.
            operation = {"iadd": "add", "radd": "add", "imul": "mul", "rmul": "mul"}.get(operation, operation)
            owned = [self.own[id(t)] for t in _tensors((args, kwargs)) if id(t) in self.own]
            path = self.stack[-1] if self.stack else ""
            name = owned[0].rpartition(".")[0] if owned else f"{path}.{operation}".strip(".")
            self.record(name or operation, operation, (args, kwargs), out, owned)
        return out

    def enter(self, module: nn.Module, inputs: Any) -> None:
        self.stack.append(self.paths[module])
        self.inside_layer += _is_layer(module)

    def leave(self, module: nn.Module, inputs: Any, out: Any) -> None:
        path = self.stack.pop()
        self.inside_layer -= _is_layer(module)
        if _is_layer(module) and not self.inside_layer and not isinstance(module, EMPTY):
            owned = [f"{path}.{name}" for name, _ in (*module.named_parameters(), *module.named_buffers())]
            self.record(path, type(module).__name__, inputs, out, owned, module)
        elif path and path == self.target and isinstance(out, Tensor):
            self.output = out
            raise _Found

    def record(
        self,
        name: str,
        kind: str,
        inputs: Any,
        out: Any,
        owned: Sequence[str] = (),
        module: nn.Module | None = None,
    ) -> None:
        self.used_names[name] += 1
        if self.used_names[name] > 1:
            name = f"{name}_{self.used_names[name] - 1}"
        if self.target:
            if name == self.target:
                self.output = _tensors(out)[0]
                raise _Found
            return
        producers = [self.producer[id(t)] for t in _tensors(inputs) if id(t) in self.producer]
        new = tuple(name for name in owned if name not in self.counted)
        self.counted.update(new)
        outputs = _tensors(out)
        shape = tuple(outputs[0].shape)
        self.nodes.append(Node(name, kind, shape, tuple(dict.fromkeys(producers)), new, module))
        self.alive.append((inputs, out))
        for tensor in outputs:
            self.producer[id(tensor)] = len(self.nodes) - 1


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, WHOLE) or next(module.children(), None) is None


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list | tuple):
        return []
    return [tensor for item in value for tensor in _tensors(item)]


@contextmanager
def at_inference(model: nn.Module) -> Iterator[None]:
    """Inference mode without gradients; restores the mode of each module at the end."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def _recording(model: nn.Module, recorder: _Recorder) -> Iterator[None]:
    hooks = [module.register_forward_pre_hook(recorder.enter) for module in model.modules()]
    hooks += [module.register_forward_hook(recorder.leave) for module in model.modules()]
    try:
        with at_inference(model), recorder:
            yield
    finally:
        for hook in hooks:
            hook.remove()


def trace(model: nn.Module, size: int, method: str = "forward") -> list[Node]:
    """The nodes of a network in order of execution, from the image to the output; nothing is computed.

    Args:
        model: Any image network; its first convolution determines the image channels.
        size: Image height and width, pixels.
        method: `forward`, or `forward_features` to leave the head out.
    """
    values = (*model.parameters(), *model.buffers())
    model = copy.deepcopy(model, {id(value): value.detach().to("meta") for value in values})
    recorder = _Recorder(model)
    in_channels = next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)), 3)
    x = torch.empty(1, in_channels, size, size, device="meta")
    recorder.record("input", "input", (), x)
    with _recording(model, recorder):
        getattr(model, method)(x)
    return recorder.nodes


def layer_output(model: nn.Module, images: Tensor, layer: str) -> Tensor:
    """The output of a layer, block or operation for a batch of images; layers behind it do not run.

    Args:
        model: The network; runs in inference mode without gradients.
        images: N x C x H x W, preprocessed for the network.
        layer: A name of `trace`, or the path of a block such as `Mixed_6a`.

    Raises:
        UsageError: there is no such layer, or it does not run.
    """
    recorder = _Recorder(model, layer)
    recorder.record("input", "input", (), images)
    try:
        with _recording(model, recorder):
            model(images)
    except _Found:
        pass
    if recorder.output is None:
        raise UsageError(
            f"the network has no layer {layer!r} that returns one tensor",
            "use a name that flowers-torch layers ARCH prints",
        )
    return recorder.output
