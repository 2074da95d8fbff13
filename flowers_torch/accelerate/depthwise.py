"""Fast gradients of depthwise convolutions on a CPU.

Some of oneDNN's implementations are twenty times as slow as others: those for bf16 maps with a stride, and
those for kernels wider than three columns (ONEDNN_VERBOSE=1 lists them; each was timed).
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from flowers_torch.accelerate.conv_bn import Geometry

MAX_COLUMNS = 3  # of a depthwise kernel whose gradient is fast

Gradients = tuple[Any, Any, Any]  # of maps, weight and bias; None where not needed


def is_depthwise(weight: Tensor, groups: int) -> bool:
    """Whether each channel has its own kernel."""
    return groups > 1 and weight.shape[:2] == (groups, 1)


def convolution_gradients(
    gradient: Tensor, maps: Tensor, weight: Tensor, geometry: Geometry, needed: Sequence[bool]
) -> Gradients:
    """The gradients of a convolution as torch computes them.

    Args:
        gradient: Of the output (N, C', H', W').
        maps: The input, padded as `Geometry.pad` does.
        needed: Which of the three gradients to compute.
    """
    settings = ([len(weight)], geometry.stride, geometry.padding, geometry.dilation, False, [0, 0], geometry.groups)
    gradients: Gradients = torch.ops.aten.convolution_backward(gradient, maps, weight, *settings, list(needed))
    return gradients


def depthwise_gradients(
    gradient: Tensor, maps: Tensor, weight: Tensor, geometry: Geometry, needed: Sequence[bool]
) -> Gradients:
    """The same of a depthwise convolution, by oneDNN's fast implementations."""
    of_maps = of_weight = of_bias = None
    if needed[0]:
        dtype = torch.float32 if max(geometry.stride) > 1 else maps.dtype
        operands = (gradient.to(dtype), maps.to(dtype), weight.to(dtype))
        of_maps = convolution_gradients(*operands, geometry, (True, False, False))[0].to(maps.dtype)
    if needed[1]:
        of_weight = _weight_gradient(gradient, maps, weight, geometry)
    if needed[2]:
        of_bias = gradient.sum((0, 2, 3))
    return of_maps, of_weight, of_bias


def _weight_gradient(gradient: Tensor, maps: Tensor, weight: Tensor, geometry: Geometry) -> Any:
    """The gradient of the kernels, a few columns at a time."""
    width, (stride, dilation) = weight.shape[3], (geometry.stride[1], geometry.dilation[1])
    if width <= MAX_COLUMNS:
        return convolution_gradients(gradient, maps, weight, geometry, (False, True, False))[1]
    padded = F.pad(maps, (geometry.padding[1], geometry.padding[1]))
    unpadded = geometry._replace(padding=[geometry.padding[0], 0], same=None)
    columns = []
    for first in range(0, width, MAX_COLUMNS):
        kernel = weight[..., first : first + MAX_COLUMNS]
        reach = (gradient.shape[3] - 1) * stride + (kernel.shape[3] - 1) * dilation + 1  # in columns of maps
        visible = padded[..., first * dilation :][..., :reach]
        columns.append(convolution_gradients(gradient, visible, kernel, unpadded, (False, True, False))[1])
    return torch.cat(columns, 3)
