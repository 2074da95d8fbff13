"""Conv-bn fusion: a copy of a frozen network with batch norm inside the convolutions, activations fused."""

import contextlib
import copy
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from flowers_torch.files.system import onednn_convolution
from flowers_torch.models.split_model import without_tf32
from flowers_torch.models.tf_layers import Conv2dSame, pad_same, same_padding
from flowers_torch.training.device import breaks_in_channels_last

# Activations that oneDNN appends to a convolution: its name for them and their bounds.
ACTIVATIONS: dict[type[nn.Module], tuple[str, list[float]]] = {
    nn.Identity: ("none", []),
    nn.ReLU: ("relu", []),
    nn.ReLU6: ("hardtanh", [0.0, 6.0]),
    nn.SiLU: ("swish", []),
    nn.Hardswish: ("hardswish", []),
}
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}  # of `relative_deviation` on example inputs
# What a processor or a build of torch without oneDNN's fused convolution raises.
NOT_AVAILABLE = (RuntimeError,)


class Unit(NamedTuple):
    """The names of a convolution, the batch norm behind it, and the activation behind that."""

    conv: str
    norm: str
    activation: str = ""  # a module behind the norm; empty: the norm's own, or none


class Geometry(NamedTuple):
    """Padding, stride, dilation and groups of a convolution, as oneDNN takes them."""

    padding: list[int]
    stride: list[int]
    dilation: list[int]
    groups: int
    same: list[int] | None  # the kernel size where the padding depends on the input (TensorFlow's `same`)

    @classmethod
    def of(cls, conv: nn.Conv2d) -> "Geometry":
        """Of a convolution that `is_fusable`."""
        same = list(conv.kernel_size) if isinstance(conv, (Conv2dSame, *of_timm("Conv2dSame"))) else None
        padding = [0, 0] if same else [int(side) for side in conv.padding]
        return cls(padding, list(conv.stride), list(conv.dilation), conv.groups, same)

    def pad(self, maps: Tensor) -> Tensor:
        """The input with the padding that oneDNN does not do."""
        return pad_same(maps, self.same, self.stride, self.dilation) if self.same else maps


def convolve(
    maps: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, activation: type[nn.Module]
) -> Tensor:
    """Convolution, bias and activation in one call of oneDNN, without a gradient; all of one dtype."""
    convolution = onednn_convolution()
    if convolution is None:
        raise NotImplementedError("torch was built without oneDNN")
    output: Tensor = convolution(maps, weight, bias, *geometry[:4], *ACTIVATIONS[activation], "")
    return output


class FusedConv2d(nn.Module):
    """A convolution that `is_fusable` and one of `ACTIVATIONS` in one call, for inference in `dtype`."""

    def __init__(self, conv: nn.Conv2d, activation: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        weight = conv.weight.detach().to(dtype).contiguous(memory_format=torch.channels_last)
        self.register_buffer("weight", weight)
        self.register_buffer("bias", conv.bias.detach().to(dtype) if conv.bias is not None else None)
        self.geometry, self.activation = Geometry.of(conv), type(activation)
        wider = F.pad(weight, (1, 0, 1, 0)) if self.geometry.same and conv.dilation == (1, 1) else None
        self.register_buffer("wider", wider)

    def forward(self, maps: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H', W')."""
        geometry, weight = self._without_padding(maps)
        bias: Any = self.bias
        return convolve(geometry.pad(maps.to(weight.dtype)), weight, bias, geometry, self.activation)

    def _without_padding(self, maps: Tensor) -> tuple[Geometry, Any]:
        """Geometry and weight that need no padded copy of the input, where such exist.

        Uneven `same` padding has one more row and column behind the input than in front of it. A kernel with
        zeros in front makes it even, and oneDNN does even padding itself.
        """
        if self.geometry.same is None:
            return self.geometry, self.weight
        settings = (self.geometry.same, self.geometry.stride, self.geometry.dilation)
        totals = {same_padding(*sides) for sides in zip(maps.shape[2:], *settings, strict=True)}
        total = totals.pop()
        if totals or (total % 2 and self.wider is None):
            return self.geometry, self.weight
        even = self.geometry._replace(padding=[(total + 1) // 2] * 2, same=None)
        return even, self.wider if total % 2 else self.weight


def fuse_conv_bn(
    model: nn.Module, forward: Callable[[nn.Module], Tensor], dtype: torch.dtype = torch.float32
) -> nn.Module:
    """A fused copy of a network, or the network itself where no copy has the same output.

    On a CPU convolutions are fused with their activations for float32 and bfloat16. Elsewhere batch norm goes
    into the convolutions and autocast chooses the dtype.

    Args:
        model: In inference mode; it does not change.
        forward: Runs a network on example inputs. Layers that it does not reach stay as they are.
        dtype: Of the arithmetic. A copy for bfloat16 is called under autocast, for the layers not fused.
    """
    on_cpu = next(model.parameters()).device.type == "cpu"
    with torch.no_grad(), without_tf32():
        units, expected = find_units(model, forward)
        fused = [(dtype, units), (dtype, bare(units))] if on_cpu and dtype in TOLERANCE else []
        for kind, chosen in (*fused, (None, units)):
            candidate = _fused_copy(model, chosen, kind)
            try:
                # Layers that are not fused run in bf16 under autocast, here as in use.
                with torch.autocast("cpu", dtype, enabled=kind is torch.bfloat16):
                    output = forward(candidate)
            except NOT_AVAILABLE:
                continue
            if relative_deviation(output, expected) <= TOLERANCE[kind or torch.float32]:
                return candidate
    return model


def relative_deviation(output: Tensor, expected: Tensor) -> float:
    """The L2 norm of the difference over that of the expected output."""
    return float((output.float() - expected).norm() / expected.norm().clamp(min=1e-12))


def find_units(model: nn.Module, forward: Callable[[nn.Module], Tensor]) -> tuple[list[Unit], Tensor]:
    """Convolutions with a batch norm behind them, each called once, and the output of the model in float32.

    The order of the layers is observed in a forward pass. Uses of an output by anything but these layers are
    not observed, so the caller has to compare outputs.
    """
    calls: Counter[str] = Counter()
    consumers: dict[str, list[str]] = defaultdict(list)  # of the output of a norm
    producers: dict[int, str] = {}  # id of an output -> name of the layer
    alive: list[Tensor] = []  # the id of a freed tensor would be used again
    convolutions: dict[str, str] = {}  # by the name of the norm behind
    layers: dict[str, Any] = dict(model.named_modules())
    names = {module: name for name, module in layers.items()}

    def observe(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        name, producer = names[module], producers.get(id(inputs[0]), "")
        calls[name] += 1
        if isinstance(module, nn.BatchNorm2d):
            if isinstance(layers[producer], nn.Conv2d):
                convolutions[name] = producer
        elif producer in convolutions:
            consumers[producer].append(name)
        producers[id(output)] = name
        alive.append(output)

    kinds: tuple[type[nn.Module], ...] = (nn.Conv2d, nn.BatchNorm2d, *(ACTIVATIONS.keys() - {nn.Identity}))
    with contextlib.ExitStack() as stack:
        for module in names:
            if isinstance(module, kinds):
                stack.enter_context(module.register_forward_hook(observe))
        output = forward(model).float()
    norms = Counter(convolutions.values())  # behind each convolution
    units = []
    for norm, conv in convolutions.items():
        drops = isinstance(layers[norm], of_timm("BatchNormAct2d")) and type(layers[norm].drop) is not nn.Identity
        if calls[conv] == calls[norm] == norms[conv] == 1 and layers[norm].running_mean is not None and not drops:
            behind, *others = consumers[norm] or [""]
            alone = not others and calls[behind] == 1 and not isinstance(layers[behind], nn.Conv2d)
            units.append(Unit(conv, norm, behind if alone else ""))
    return units, output


def bare(units: list[Unit]) -> list[Unit]:
    """The units without activations: one may have to stay separate, since not every use of a norm is observed."""
    return [unit._replace(activation="") for unit in units]


def layers_of(model: nn.Module, unit: Unit) -> tuple[Any, Any, nn.Module, str]:
    """Convolution, norm, activation and the name of the activation."""
    conv, norm = model.get_submodule(unit.conv), model.get_submodule(unit.norm)
    # The norms of timm contain their activation. Others have it behind them, as a module or as a function.
    activation: Any = norm.act if isinstance(norm, of_timm("BatchNormAct2d")) else nn.Identity()
    if type(activation) is nn.Identity and unit.activation:
        return conv, norm, model.get_submodule(unit.activation), unit.activation
    return conv, norm, activation, unit.norm


def is_fusable(conv: nn.Conv2d) -> bool:
    """Whether `convolve` can compute a convolution."""
    plain = type(conv) is nn.Conv2d and conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
    is_same_padded = type(conv) in (Conv2dSame, *of_timm("Conv2dSame"))
    return (plain or is_same_padded) and not breaks_in_channels_last(conv)


def of_timm(name: str) -> tuple[type[nn.Module], ...]:
    """A class of timm's layers, if timm is imported, as it is wherever a network is timm's."""
    layers: Any = sys.modules.get("timm.layers")
    return (getattr(layers, name),) if layers else ()


def _fused_copy(model: nn.Module, units: list[Unit], dtype: torch.dtype | None) -> nn.Module:
    """A copy with batch norm inside the convolutions; with a dtype, activations are fused too."""
    fused = copy.deepcopy(model)
    for unit in units:
        conv, norm, activation, activation_name = layers_of(fused, unit)
        conv = fuse_conv_bn_eval(conv, norm)
        fused.set_submodule(unit.norm, activation if activation_name == unit.norm else nn.Identity())
        if dtype and type(activation) in ACTIVATIONS and is_fusable(conv):
            conv = FusedConv2d(conv, activation, dtype)
            fused.set_submodule(activation_name, nn.Identity())
        fused.set_submodule(unit.conv, conv)
    return fused
