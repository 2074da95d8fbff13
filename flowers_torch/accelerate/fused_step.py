"""A view of a network whose training step is fast on a CPU; parameters and buffers are the network's own.

What a step of a small network costs on a CPU is not its multiplications. Batch norm and activations read and
write every map again; where stored statistics are used, scale and shift become weights and bias of the
convolution, computed anew in each step so that their gradients flow, and oneDNN applies the activation in the
same pass. And some of oneDNN's gradients of depthwise convolutions are twenty times as slow as others, which
can be asked for instead.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from flowers_torch.accelerate.conv_bn import (
    Geometry,
    Unit,
    convolve,
    find_units,
    is_fusable,
    parts,
    put,
    statistics,
)

# Activations whose gradient can be computed from their answer, which is all that is kept of them.
TOLD_BY_ANSWER = (nn.Identity, nn.ReLU, nn.ReLU6)
WIDEST = 3  # columns of a depthwise kernel up to which oneDNN's gradient of its weights is fast
ALLOWED = 1e-4  # relative deviation (L2) of the view's answers to noise


def fuse(model: nn.Module, inputs: Tensor) -> nn.Module:
    """A fast view of a network, or the network itself where there is none that answers the same.

    The view begins in the modes of the network; from then on they are its own.

    Args:
        model: In the modes that it will train in: batch norm in inference mode is folded, other batch norm
            follows the photos in the view too. Stays as it is.
        inputs: A few of any content, to try the view out with.
    """
    if next(model.parameters()).device.type != "cpu":
        return model

    def forward(network: nn.Module) -> Tensor:
        answer: Tensor = network(inputs)
        return answer.float()

    modes = {name: module.training for name, module in model.named_modules()}
    model.eval()
    try:
        with torch.no_grad():
            units, expected = find_units(model, forward)
            # Who else takes the output of a norm is not all seen: its activation may have to stay apart.
            for some in (units, [Unit(unit.conv, unit.norm) for unit in units]):
                view = _view(model, some, modes)
                if not any(isinstance(module, FusedUnit) for module in view.modules()):
                    break
                deviation = (forward(view) - expected).norm() / expected.norm().clamp(min=1e-12)
                if deviation <= ALLOWED:
                    return _set_modes(view, modes)
    except RuntimeError:  # this processor or build of torch does not fuse
        pass
    finally:
        _set_modes(model, modes)
    return model


def _set_modes(model: nn.Module, modes: Mapping[str, bool]) -> nn.Module:
    for name, module in model.named_modules():
        module.training = modes.get(name, False)
    return model


def _view(model: nn.Module, units: Sequence[Unit], modes: Mapping[str, bool]) -> nn.Module:
    """A copy that shares parameters and buffers; units whose norm keeps its statistics are fused."""
    own = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    view = copy.deepcopy(model, own)
    convolutions = {name: module for name, module in view.named_modules() if isinstance(module, nn.Conv2d)}
    for unit in units:
        found = None if modes[unit.norm] else parts(view, unit)
        if not found or not is_fusable(found[0]):
            continue
        conv, norm, activation, where = found
        known = type(activation) in TOLD_BY_ANSWER
        put(view, unit.norm, nn.Identity())
        put(view, where, nn.Identity() if known else activation)
        put(view, unit.conv, FusedUnit(conv, norm, type(activation) if known else nn.Identity))
        del convolutions[unit.conv]
    for name, conv in convolutions.items():
        if is_fusable(conv) and _is_depthwise(conv.weight, conv.groups):
            put(view, name, FusedUnit(conv, None, nn.Identity))
    return view


class FusedUnit(nn.Module):
    """Convolution, batch norm with stored statistics and activation, with gradients of all parameters.

    Computes in the type of autocast where that is on.

    Args:
        conv: One that `is_fusable`.
        norm: Folded into its weights anew in each call; None for none.
        activation: One of `TOLD_BY_ANSWER`.
    """

    def __init__(
        self, conv: nn.Conv2d, norm: nn.BatchNorm2d | None, activation: type[nn.Module] = nn.Identity
    ) -> None:
        super().__init__()
        self.conv, self.norm, self.activation = conv, norm, activation
        self.where = Geometry.of(conv)

    def forward(self, maps: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H', W')."""
        weight, bias, norm = self.conv.weight, self.conv.bias, self.norm
        if norm is not None:
            mean, variance = statistics(norm)
            scale = torch.rsqrt(variance + norm.eps)
            scale = scale if norm.weight is None else scale * norm.weight
            shift = (0 if bias is None else bias) - mean
            bias = shift * scale if norm.bias is None else shift * scale + norm.bias
            weight = weight * scale[:, None, None, None]
        on = torch.is_autocast_enabled("cpu")
        dtype = torch.get_autocast_dtype("cpu") if on else weight.dtype
        maps = self.where.pad(maps.to(dtype))
        bias = None if bias is None else bias.to(dtype)
        answer: Tensor = _Convolution.apply(maps, weight.to(dtype), bias, self.where, self.activation)
        return answer


class _Convolution(torch.autograd.Function):
    """`fold.convolve` with its gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        maps: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        where: Geometry,
        activation: type[nn.Module],
    ) -> Tensor:
        answer = convolve(maps, weight, bias, where, activation)
        ctx.save_for_backward(maps, weight, None if activation is nn.Identity else answer)
        ctx.where, ctx.activation = where, activation
        return answer

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        maps, weight, answer = ctx.saved_tensors
        if ctx.activation is nn.ReLU:
            gradient = torch.ops.aten.threshold_backward(gradient, answer, 0)
        elif ctx.activation is nn.ReLU6:
            gradient = torch.ops.aten.hardtanh_backward(gradient, answer, 0.0, 6.0)
        wanted = ctx.needs_input_grad[:3]
        if _is_depthwise(weight, ctx.where.groups):
            found = _depthwise_gradients(gradient, maps, weight, ctx.where, wanted)
        else:
            found = _gradients(gradient, maps, weight, ctx.where, wanted)
        return *found, None, None


def _is_depthwise(weight: Tensor, groups: int) -> bool:
    return groups > 1 and weight.shape[:2] == (groups, 1)


Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]  # of maps, weight and bias


def _gradients(
    gradient: Tensor, maps: Tensor, weight: Tensor, where: Geometry, wanted: Sequence[bool]
) -> Gradients:
    found: Gradients = torch.ops.aten.convolution_backward(
        gradient,
        maps,
        weight,
        [len(weight)],
        where.stride,
        where.padding,
        where.dilation,
        False,
        [0, 0],
        where.groups,
        list(wanted),
    )
    return found


def _depthwise_gradients(
    gradient: Tensor, maps: Tensor, weight: Tensor, where: Geometry, wanted: Sequence[bool]
) -> Gradients:
    """Those of oneDNN that are fast. Source: its list of implementations, by ONEDNN_VERBOSE=1 and a clock.

    With a stride the gradient of bf16 maps is slow and that of float32 maps is not. The gradient of a kernel
    is slow where it is wider than three columns, so wider ones are asked for a few columns at a time.
    """
    of_maps: Any = None
    of_weight = of_bias = None
    if wanted[0]:
        dtype = torch.float32 if max(where.stride) > 1 else maps.dtype
        operands = (gradient.to(dtype), maps.to(dtype), weight.to(dtype))
        of_maps = _gradients(*operands, where, (True, False, False))[0]
        of_maps = of_maps.to(maps.dtype)
    if wanted[1]:
        of_weight = _depthwise_weight_gradient(gradient, maps, weight, where)
    if wanted[2]:
        of_bias = gradient.sum((0, 2, 3))
    return of_maps, of_weight, of_bias


def _depthwise_weight_gradient(gradient: Tensor, maps: Tensor, weight: Tensor, where: Geometry) -> Tensor:
    width, (stride, dilation) = weight.shape[3], (where.stride[1], where.dilation[1])
    if width <= WIDEST:
        found: Any = _gradients(gradient, maps, weight, where, (False, True, False))[1]
        return found
    padded = F.pad(maps, (where.padding[1], where.padding[1]))
    unpadded = Geometry([where.padding[0], 0], where.stride, where.dilation, where.groups, None)
    columns: list[Any] = []
    for first in range(0, width, WIDEST):
        some = weight[..., first : first + WIDEST]
        reach = (gradient.shape[3] - 1) * stride + (some.shape[3] - 1) * dilation + 1  # of the maps' columns
        seen = padded[..., first * dilation :][..., :reach]
        columns.append(_gradients(gradient, seen, some, unpadded, (False, True, False))[1])
    return torch.cat(columns, 3)
