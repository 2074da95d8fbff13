"""The fused training step: convolution, batch norm and activation in one oneDNN call, with gradients.

Where batch norm keeps its running statistics, its scale and shift become weights and bias of the convolution,
computed again in each step so that gradients reach them.
"""

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from flowers_torch.accelerate.conv_bn import (
    NOT_AVAILABLE,
    Geometry,
    Unit,
    bare,
    convolve,
    find_units,
    is_fusable,
    layers_of,
    relative_deviation,
)
from flowers_torch.accelerate.depthwise import convolution_gradients, depthwise_gradients, is_depthwise
from flowers_torch.models.heads import shared_copy
from flowers_torch.models.inspect.trace import at_inference

# Activations whose gradient follows from their output, so that only the output is saved for it.
ACTIVATIONS = (nn.Identity, nn.ReLU, nn.ReLU6)
TOLERANCE = 1e-4  # of `relative_deviation` on example inputs


def fused_view(model: nn.Module, inputs: Tensor, fuse: bool = True, depthwise: bool = True) -> nn.Module:
    """A fast view of a network on a CPU, or the network itself where no view has the same output.

    The view shares parameters and buffers. It starts in the modes of the network; later changes are its own.

    Args:
        model: In the modes of its training. Batch norm in inference mode is fused, other batch norm uses the
            statistics of the batch in the view too.
        fuse: Whether to fuse convolutions with batch norm and activation.
        depthwise: Whether to replace the gradients of depthwise convolutions.
    """

    def forward(network: nn.Module) -> Tensor:
        with at_inference(network):
            output: Tensor = network(inputs)
        return output.float()

    with contextlib.suppress(*NOT_AVAILABLE):
        units, expected = find_units(model, forward)
        for chosen in (units, bare(units)) if fuse else ([],):
            view = _view(model, chosen, depthwise)
            if not any(isinstance(module, FusedUnit) for module in view.modules()):
                break
            if relative_deviation(forward(view), expected) <= TOLERANCE:
                return view
    return model


def _view(model: nn.Module, units: Sequence[Unit], depthwise: bool) -> nn.Module:
    """A copy that shares parameters and buffers; units whose norm keeps its statistics are fused."""
    view = shared_copy(model)
    convolutions = {name: module for name, module in view.named_modules() if isinstance(module, nn.Conv2d)}
    for unit in units:
        conv, norm, activation, activation_name = layers_of(view, unit)
        if norm.training or not is_fusable(conv):
            continue
        fusable = type(activation) in ACTIVATIONS
        view.set_submodule(unit.norm, nn.Identity())
        view.set_submodule(activation_name, nn.Identity() if fusable else activation)
        kind = type(activation) if fusable else nn.Identity
        view.set_submodule(unit.conv, FusedUnit(convolutions.pop(unit.conv), norm, kind, depthwise))
    for name, conv in convolutions.items():
        if depthwise and is_fusable(conv) and is_depthwise(conv.weight, conv.groups):
            view.set_submodule(name, FusedUnit(conv, None))
    return view


class FusedUnit(nn.Module):
    """Convolution, batch norm with running statistics and activation, with gradients of all parameters.

    Computes in the dtype of autocast where that is on.

    Args:
        conv: A convolution that `is_fusable`.
        norm: Fused into the weights again in each call; None for none.
        activation: One of `ACTIVATIONS`.
        depthwise: Whether a depthwise convolution gets `depthwise_gradients`.
    """

    def __init__(self, conv: nn.Conv2d, norm: Any, activation: Any = nn.Identity, depthwise: bool = True) -> None:
        super().__init__()
        self.conv, self.norm, self.activation = conv, norm, activation
        self.geometry = Geometry.of(conv)
        special = depthwise and is_depthwise(conv.weight, conv.groups)
        self.gradients = depthwise_gradients if special else convolution_gradients

    def forward(self, maps: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H', W')."""
        weight, bias, norm = self.conv.weight, self.conv.bias, self.norm
        if norm is not None:
            scale = torch.rsqrt(norm.running_var + norm.eps)
            scale = scale if norm.weight is None else scale * norm.weight
            shift = (0 if bias is None else bias) - norm.running_mean
            bias = shift * scale if norm.bias is None else shift * scale + norm.bias
            weight = weight * scale[:, None, None, None]
        autocast = torch.is_autocast_enabled("cpu")
        dtype = torch.get_autocast_dtype("cpu") if autocast else weight.dtype
        maps = self.geometry.pad(maps.to(dtype))
        bias = None if bias is None else bias.to(dtype)
        settings = (self.geometry, self.activation, self.gradients)
        output: Tensor = _Convolution.apply(maps, weight.to(dtype), bias, *settings)
        return output


class _Convolution(torch.autograd.Function):
    """`convolve` with its gradients."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, weight: Tensor, bias: Tensor | None, *settings: Any) -> Tensor:
        ctx.geometry, ctx.activation, ctx.gradients = settings
        output = convolve(maps, weight, bias, ctx.geometry, ctx.activation)
        ctx.save_for_backward(maps, weight, None if ctx.activation is nn.Identity else output)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        maps, weight, output = ctx.saved_tensors
        if ctx.activation is nn.ReLU:
            gradient = torch.ops.aten.threshold_backward(gradient, output, 0)
        elif ctx.activation is nn.ReLU6:
            gradient = torch.ops.aten.hardtanh_backward(gradient, output, 0.0, 6.0)
        needed = ctx.needs_input_grad[:3]
        return *ctx.gradients(gradient, maps, weight, ctx.geometry, needed), None, None, None
