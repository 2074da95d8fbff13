"""Layers as TensorFlow computes them, where PyTorch has no layer of that kind.

The trap is the padding "same": for a kernel k and a stride 2, TensorFlow pads k - 2 pixels in all for an even
size and k - 1 for an odd one, the larger half right and below. A symmetric padding of k // 2 gives an output
of the same shape that is shifted by one pixel. timm's `Conv2dSame` and `MaxPool2dSame` do it right and are
used as they are; here are the two layers that it lacks.
"""

from timm.layers import pad_same
from torch import Tensor, nn


class SamePad2d(nn.Module):
    """Zeros around a picture, as many as padding "same" takes for this kernel with stride 2.

    Shapes: N x C x H x W -> N x C x H' x W', so that kernel_size with stride 2 gives ceil(H/2) x ceil(W/2).
    """

    def __init__(self, kernel_size: int) -> None:
        super().__init__()
        self.kernel_size = kernel_size

    def forward(self, x: Tensor) -> Tensor:
        padded: Tensor = pad_same(x, [self.kernel_size] * 2, [2, 2])
        return padded


class Crop2d(nn.Module):
    """Cuts rows off the top and as many columns off the left: N x C x H x W -> N x C x H-n x W-n."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, self.count :, self.count :]


class SeparableConv2d(nn.Module):
    """A depthwise and a 1x1 convolution without bias and with nothing between them; in Keras one layer.

    Shapes: N x in_channels x H x W -> N x out_channels x H' x W'; without padding where it is strided.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> None:
        super().__init__()
        padding = kernel_size // 2 if stride == 1 else 0
        self.depthwise = nn.Conv2d(
            in_channels, in_channels, kernel_size, stride, padding, groups=in_channels, bias=False
        )
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.depthwise(x))
