"""Layers of TensorFlow that PyTorch does not have.

For a kernel k and a stride of 2, TensorFlow's padding "same" adds k - 2 pixels in total to an even size and
k - 1 to an odd one, the larger half right and below. A symmetric padding of k // 2 gives the same shape, but
the output is shifted by one pixel.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


def same_padding(side: int, kernel_size: int, stride: int, dilation: int = 1) -> int:
    """The pixels that "same" adds to a side of a map, in total."""
    reach = (math.ceil(side / stride) - 1) * stride + (kernel_size - 1) * dilation + 1
    return max(reach - side, 0)


def pad_same(
    maps: Tensor, kernel_size: Sequence[int], stride: Sequence[int], dilation: Sequence[int] = (1, 1), value: float = 0
) -> Tensor:
    """Maps (N, C, H, W) with the padding of "same", of pixels of a `value`."""
    height, width = map(same_padding, maps.shape[2:], kernel_size, stride, dilation)
    return F.pad(maps, (width // 2, width - width // 2, height // 2, height - height // 2), value=value)


class Conv2dSame(nn.Conv2d):
    """A convolution that pads "same"; arguments as in `nn.Conv2d`, without padding."""

    def forward(self, input: Tensor) -> Tensor:
        padded = pad_same(input, self.kernel_size, self.stride, self.dilation)
        return F.conv2d(padded, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class MaxPool2dSame(nn.MaxPool2d):
    """A max pooling that pads "same"; kernel size and stride are numbers."""

    def forward(self, input: Tensor) -> Tensor:
        size: Any = self.kernel_size
        stride: Any = self.stride
        padded = pad_same(input, (size, size), (stride, stride), value=-math.inf)
        return F.max_pool2d(padded, size, stride)


class SamePad2d(nn.Module):
    """Zero padding as in "same", for a kernel with a stride of 2 whose output is ceil(H/2) x ceil(W/2)."""

    def __init__(self, kernel_size: int) -> None:
        super().__init__()
        self.kernel_size = kernel_size

    def forward(self, x: Tensor) -> Tensor:
        return pad_same(x, [self.kernel_size] * 2, [2, 2])


class Crop2d(nn.Module):
    """Removes n rows from the top and n columns from the left: N x C x H x W -> N x C x H-n x W-n."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, self.count :, self.count :]


class SeparableConv2d(nn.Module):
    """A depthwise and a 1x1 convolution without bias, padded only with stride 1; one layer in Keras."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> None:
        super().__init__()
        padding = kernel_size // 2 if stride == 1 else 0
        n = in_channels
        self.depthwise = nn.Conv2d(n, n, kernel_size, stride, padding, groups=n, bias=False)
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.depthwise(x))
