"""Layers of TensorFlow that PyTorch and timm do not have.

For a kernel k and a stride of 2, TensorFlow's padding "same" adds k - 2 pixels in total to an even size and
k - 1 to an odd one, the larger half right and below. A symmetric padding of k // 2 gives the same shape, but
the output is shifted by one pixel. timm's `Conv2dSame` and `MaxPool2dSame` pad like TensorFlow.
"""

from timm.layers import pad_same
from torch import Tensor, nn


class SamePad2d(nn.Module):
    """Zero padding as in "same", for a kernel with a stride of 2 whose output is ceil(H/2) x ceil(W/2)."""

    def __init__(self, kernel_size: int) -> None:
        super().__init__()
        self.kernel_size = kernel_size

    def forward(self, x: Tensor) -> Tensor:
        padded: Tensor = pad_same(x, [self.kernel_size] * 2, [2, 2])
        return padded


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
