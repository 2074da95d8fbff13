"""A copy of a network for inference: batch norm folded into the convolutions, their activations fused.

On a CPU the elementwise layers of small networks cost as much as their convolutions. Folding takes batch norm
away (its scale and shift become weights and bias); oneDNN then computes a convolution and its activation in
one pass.
"""

import copy
import dataclasses
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from timm.layers import BatchNormAct2d, Conv2dSame, pad_same
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

# Activations that oneDNN appends to a convolution: its name for them and their bounds.
FUSED: dict[type[nn.Module], tuple[str, list[float]]] = {
    nn.Identity: ("none", []),
    nn.ReLU: ("relu", []),
    nn.ReLU6: ("hardtanh", [0.0, 6.0]),
    nn.SiLU: ("swish", []),
    nn.Hardswish: ("hardswish", []),
}
ALLOWED = {torch.float32: 1e-4, torch.bfloat16: 5e-2}  # relative deviation (L2) of the answers to noise


@dataclasses.dataclass
class _Unit:
    """A convolution, the batch norm that takes its output, and what takes that."""

    conv: str
    norm: str
    activation: str = ""  # a module behind the norm; empty: the norm's own, or none


class FusedConv2d(nn.Module):
    """Convolution, bias and activation in one call of oneDNN.

    Args:
        conv: With bias; `padding_mode` zeros.
        activation: One of `FUSED`.
        dtype: Of the arithmetic and of the output.
    """

    def __init__(self, conv: nn.Conv2d, activation: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        weight = conv.weight.detach().to(dtype).contiguous(memory_format=torch.channels_last)
        self.register_buffer("weight", weight)
        self.register_buffer("bias", conv.bias.detach().to(dtype) if conv.bias is not None else None)
        self.kernel, self.stride = list(conv.kernel_size), list(conv.stride)
        self.dilation, self.groups = list(conv.dilation), conv.groups
        self.same = isinstance(conv, Conv2dSame)
        self.padding = [0, 0] if self.same else [int(side) for side in conv.padding]
        self.activation, self.bounds = FUSED[type(activation)]

    def forward(self, maps: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H', W')."""
        maps = maps.to(self.weight.dtype)  # type: ignore[arg-type]
        if self.same:
            maps = pad_same(maps, self.kernel, self.stride, self.dilation)
        convolve: Any = torch.ops.mkldnn._convolution_pointwise  # what torch.compile's CPU kernels call too
        where = (self.padding, self.stride, self.dilation, self.groups)
        answer: Tensor = convolve(maps, self.weight, self.bias, *where, self.activation, self.bounds, "")
        return answer


def fold(
    model: nn.Module, forward: Callable[[nn.Module], Tensor], dtype: torch.dtype = torch.float32
) -> nn.Module:
    """A folded copy of a network, or the network itself where the copy would not answer the same.

    Which layers follow each other is seen, not known; that the copy answers the same is tried, not believed.

    Args:
        model: In inference mode; stays as it is.
        forward: Runs a network, this one or its copy, over the same few images. What it does not reach stays
            unfolded.
        dtype: That the convolutions shall compute in. On a CPU they are fused for float32 and bfloat16;
            elsewhere batch norm is folded, and autocast chooses the type.
    """
    on_cpu = next(model.parameters()).device.type == "cpu"
    with torch.no_grad():
        units, expected = _record(model, forward)
        for fused in (True, False) if on_cpu and dtype in ALLOWED else (False,):
            made = _replace(model, units, dtype if fused else None)
            try:
                answer = forward(made).float()
            except RuntimeError:  # this processor or build of torch does not fuse
                continue
            deviation = (answer - expected).norm() / expected.norm().clamp(min=1e-12)
            if deviation <= ALLOWED[dtype if fused else torch.float32]:
                return made
    return model


def _record(model: nn.Module, forward: Callable[[nn.Module], Tensor]) -> tuple[list[_Unit], Tensor]:
    """Convolutions whose output a batch norm takes, and the answer."""
    calls: Counter[str] = Counter()
    makers: dict[int, str] = {}  # id of an output -> name of its maker
    alive: list[Tensor] = []  # a dead tensor's id would be used again
    units: dict[str, _Unit] = {}  # by the name of the norm
    names = {module: name for name, module in model.named_modules()}

    def seen(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        name, maker = names[module], makers.get(id(inputs[0]), "")
        calls[name] += 1
        if isinstance(module, nn.BatchNorm2d):
            if maker and isinstance(model.get_submodule(maker), nn.Conv2d):
                units[name] = _Unit(maker, name)
        elif maker in units and not isinstance(module, nn.Conv2d):
            units[maker].activation = name
        makers[id(output)] = name
        alive.append(output)

    kinds = (nn.Conv2d, nn.BatchNorm2d, *FUSED)
    layers = [module for module in model.modules() if isinstance(module, kinds)]
    hooks = [module.register_forward_hook(seen) for module in layers]
    try:
        answer = forward(model).float()
    finally:
        for hook in hooks:
            hook.remove()
    for unit in units.values():
        if calls[unit.activation] > 1:
            unit.activation = ""
    return [unit for unit in units.values() if calls[unit.conv] == calls[unit.norm] == 1], answer


def _replace(model: nn.Module, units: list[_Unit], dtype: torch.dtype | None) -> nn.Module:
    """The copy: folded, and with a type of arithmetic also fused."""
    made = copy.deepcopy(model)
    for unit in units:
        conv, norm = made.get_submodule(unit.conv), made.get_submodule(unit.norm)
        if not isinstance(conv, nn.Conv2d) or not isinstance(norm, nn.BatchNorm2d):
            continue
        if norm.running_mean is None or norm.running_var is None:
            continue  # it follows the batch
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        # timm's norm has its activation inside; others have it behind, or a function that is not seen.
        activation: nn.Module = norm.act if isinstance(norm, BatchNormAct2d) else nn.Identity()
        _set(made, unit.norm, activation)
        where = unit.norm
        if type(activation) is nn.Identity and unit.activation:
            where, activation = unit.activation, made.get_submodule(unit.activation)
        if dtype and type(activation) in FUSED and _fusable(conv):
            _set(made, unit.conv, FusedConv2d(conv, activation, dtype))
            _set(made, where, nn.Identity())
    return made


def _fusable(conv: nn.Conv2d) -> bool:
    plain = type(conv) is nn.Conv2d and conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
    return plain or type(conv) is Conv2dSame


def _set(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)
