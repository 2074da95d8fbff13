"""The layers of any network in order of execution, and their connections.

The network runs once on the "meta" device, which has shapes and no values. Hooks and a `TorchFunctionMode`
record every layer and every tensor operation between layers.
"""

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from flowers_torch.errors import UsageError
from flowers_torch.models.tf_layers import SeparableConv2d

WHOLE = (SeparableConv2d, nn.MultiheadAttention)  # modules with children that count as one layer
EMPTY = (nn.Identity, nn.Sequential)  # modules that do nothing if they have no children


class Node(NamedTuple):
    """One layer, or one operation between layers."""

    name: str  # the module's path, or the surrounding module's path and the operation
    kind: str  # class of the module or name of the operation; "input" for the image
    shape: tuple[int, ...]  # of the output, batch first
    inputs: tuple[int, ...]  # indices of the nodes that feed it
    sizes: dict[str, int]  # of its parameters and running statistics, by name in the state dict
    module: nn.Module | None  # None for an operation


class _Found(Exception):
    """Ends the forward pass after the target layer; its argument is the output."""


class _Recorder(TorchFunctionMode):
    """Records each call of a tensor function and, through hooks, of a module.

    With a `target` it records nothing and raises `_Found` behind the layer of that name.
    """

    def __init__(self, model: nn.Module, target: str = "") -> None:
        super().__init__()
        self.model, self.target = model, target
        self.paths = {module: name for name, module in model.named_modules()}
        tensors = {name: tensor for name, tensor in (*model.named_parameters(), *model.named_buffers())}
        self.own = {id(tensor): name for name, tensor in tensors.items()}
        # Sizes of the tensors that no node has yet.
        self.sizes = {name: t.numel() for name, t in tensors.items() if not name.endswith("num_batches_tracked")}
        self.nodes: list[Node] = []
        self.producer: dict[int, int] = {}  # id of a tensor -> index of the node that returned it
        self.alive: list[Any] = []  # keeps the tensors, because Python reuses the ids of deleted ones
        self.stack: list[str] = []  # paths of the running modules
        self.inside_layer = 0
        self.used_names: Counter[str] = Counter()

    def run(self, call: Callable[[Tensor], Any], images: Tensor) -> None:
        """Calls the network, or a method of it, in inference mode."""
        with ExitStack() as stack:
            for module in self.paths:
                stack.enter_context(module.register_forward_pre_hook(self.enter))
                stack.enter_context(module.register_forward_hook(self.leave))
            stack.enter_context(at_inference(self.model))
            self.record("input", "input", (), images)
            with self:
                call(images)

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
            raise _Found(out)

    def record(
        self, name: str, kind: str, inputs: Any, out: Any, owned: Sequence[str] = (), module: nn.Module | None = None
    ) -> None:
        self.used_names[name] += 1
        if self.used_names[name] > 1:
            name = f"{name}_{self.used_names[name] - 1}"
        outputs = _tensors(out)
        if name == self.target:
            raise _Found(outputs[0])
        if self.target:
            return
        producers = dict.fromkeys(self.producer[id(t)] for t in _tensors(inputs) if id(t) in self.producer)
        sizes = {name: self.sizes.pop(name) for name in owned if name in self.sizes}
        self.producer |= {id(tensor): len(self.nodes) for tensor in outputs}
        self.nodes.append(Node(name, kind, tuple(outputs[0].shape), tuple(producers), sizes, module))
        self.alive.append((inputs, out))


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


def trace(model: nn.Module, size: int, method: str = "forward") -> list[Node]:
    """The nodes of a network in order of execution, from the image to the output; nothing is computed.

    Args:
        model: Any image network; its first convolution determines the image channels.
        size: Image height and width, pixels.
        method: `forward`, or `forward_features` to leave the head out.
    """
    values = (*model.parameters(), *model.buffers())
    model = copy.deepcopy(model, {id(value): value.detach().to("meta") for value in values})
    in_channels = next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)), 3)
    recorder = _Recorder(model)
    recorder.run(getattr(model, method), torch.empty(1, in_channels, size, size, device="meta"))
    return recorder.nodes


def layer_output(model: nn.Module, images: Tensor, layer: str) -> Tensor:
    """The output of a layer, block or operation, in inference mode; layers behind it do not run.

    Args:
        images: N x C x H x W, preprocessed for the network.
        layer: A name of `trace`, or the path of a block such as `Mixed_6a`.

    Raises:
        UsageError: there is no such layer, or it does not run.
    """
    try:
        _Recorder(model, layer).run(model, images)
    except _Found as found:
        output: Tensor = found.args[0]
        return output
    what = f"the network has no layer {layer!r} that returns one tensor"
    raise UsageError(what, "use a name that flowers-torch layers ARCH prints")
