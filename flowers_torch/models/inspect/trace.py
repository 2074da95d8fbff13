"""What a network really does with a picture: its layers in order of execution and how they are connected.

The network runs once on a picture without content (the "meta" device: shapes, no numbers) while every layer
and every tensor operation between layers is written down. From this record come the summary table, the
drawing, Keras's numbering of layers and the features of a named layer; it serves any network, timm's too.
"""

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

# Modules with parts inside that count as one layer.
WHOLE = (SeparableConv2d, nn.MultiheadAttention)
# Modules that, without parts, do nothing.
EMPTY = (nn.Identity, nn.Sequential)


@dataclass(frozen=True)
class Node:
    """One layer, or one operation between layers."""

    name: str  # the module's path, or the surrounding module's path and the operation
    kind: str  # class of the module or name of the operation; "input" for the picture
    shape: tuple[int, ...]  # of the output, batch first
    inputs: tuple[int, ...]  # indices of the nodes that feed it
    tensors: tuple[str, ...]  # names of its parameters and buffers in the state dict
    module: nn.Module | None = None  # None for an operation


class _Found(Exception):
    """Ends the forward pass once the wanted layer has answered."""


class _Recorder(TorchFunctionMode):
    """Sees each call of a tensor function, and through hooks each call of a module."""

    def __init__(self, model: nn.Module, tensors: dict[str, Tensor], wanted: str = "") -> None:
        super().__init__()
        self.paths = {module: name for name, module in model.named_modules()}
        self.own = {id(tensor): name for name, tensor in tensors.items()}
        self.nodes: list[Node] = []
        self.maker: dict[int, int] = {}  # id of a tensor -> index of the node that made it
        self.alive: list[Any] = []  # a dead tensor's id would be used again
        self.stack: list[str] = []  # paths of the modules that are running
        self.inside_layer = 0
        self.used_names: Counter[str] = Counter()
        self.counted: set[str] = set()
        self.wanted = wanted  # if any, connections are not recorded: no activation has to be kept
        self.answer: Tensor | None = None

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
            self.write(name or operation, operation, (args, kwargs), out, owned)
        return out

    def enter(self, module: nn.Module, inputs: Any) -> None:
        self.stack.append(self.paths[module])
        self.inside_layer += _is_layer(module)

    def leave(self, module: nn.Module, inputs: Any, out: Any) -> None:
        path = self.stack.pop()
        self.inside_layer -= _is_layer(module)
        if _is_layer(module) and not self.inside_layer and not isinstance(module, EMPTY):
            owned = [f"{path}.{name}" for name, _ in (*module.named_parameters(), *module.named_buffers())]
            self.write(path, type(module).__name__, inputs, out, owned, module)
        elif path and path == self.wanted and isinstance(out, Tensor):
            self.answer = out
            raise _Found

    def write(
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
        if self.wanted:
            if name == self.wanted:
                self.answer = _tensors(out)[0]
                raise _Found
            return
        makers = [self.maker[id(t)] for t in _tensors(inputs) if id(t) in self.maker]
        new = tuple(name for name in owned if name not in self.counted)
        self.counted.update(new)
        outputs = _tensors(out)
        shape = tuple(outputs[0].shape)
        self.nodes.append(Node(name, kind, shape, tuple(dict.fromkeys(makers)), new, module))
        self.alive.append((inputs, out))
        for tensor in outputs:
            self.maker[id(tensor)] = len(self.nodes) - 1


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


class _Part(nn.Module):
    """One method of a network as a network, so that `functional_call` can call it."""

    def __init__(self, model: nn.Module, method: str) -> None:
        super().__init__()
        self.model, self.method = model, method

    def forward(self, x: Tensor) -> Any:
        return getattr(self.model, self.method)(x)


@contextmanager
def at_inference(model: nn.Module) -> Iterator[None]:
    """Inference mode without gradients; at the end each module has the mode it had."""
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
    hooks = []
    for module in model.modules():
        hooks += [
            module.register_forward_pre_hook(recorder.enter),
            module.register_forward_hook(recorder.leave),
        ]
    try:
        with at_inference(model), recorder:
            yield
    finally:
        for hook in hooks:
            hook.remove()


def trace(model: nn.Module, size: int, method: str = "forward") -> list[Node]:
    """Runs a network once, without numbers, and returns what it did in order of execution.

    Args:
        model: Any network for pictures; its first convolution says how many channels they have.
        size: Height and width of the picture, pixels.
        method: `forward`, or `forward_features` to leave the head out.

    Returns:
        The nodes; the first is the picture, the last the result.
    """
    tensors = {name: t.detach().to("meta") for name, t in (*model.named_parameters(), *model.named_buffers())}
    recorder = _Recorder(model, tensors)
    in_channels = next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)), 3)
    x = torch.empty(1, in_channels, size, size, device="meta")
    recorder.write("input", "input", (), x)
    state = {f"model.{name}": tensor for name, tensor in tensors.items()}
    with _recording(model, recorder):
        torch.func.functional_call(_Part(model, method), state, (x,))
    return recorder.nodes


def layer_output(model: nn.Module, images: Tensor, layer: str) -> Tensor:
    """What a named layer, block or operation answers to a batch of images; layers behind it do not run.

    Args:
        model: The network; runs in inference mode without gradients.
        images: N x C x H x W, prepared as the network wants them.
        layer: A name of `trace`, or the path of a block such as `Mixed_6a`.

    Raises:
        UsageError: there is no such layer, or it does not run.
    """
    tensors = dict((*model.named_parameters(), *model.named_buffers()))
    recorder = _Recorder(model, tensors, layer)
    recorder.write("input", "input", (), images)
    try:
        with _recording(model, recorder):
            model(images)
    except _Found:
        pass
    if recorder.answer is None:
        raise UsageError(
            f"the network has no layer {layer!r} that answers with one tensor",
            "take a name from flowers-torch layers ARCH",
        )
    return recorder.answer
