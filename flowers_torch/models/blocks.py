"""Residual blocks, from which every residual network of this package is stacked.

    import torch
    from flowers_torch import ConvolutionalBlock, IdentityBlock

    x = torch.randn(8, 64, 56, 56)
    x = ConvolutionalBlock(64, 3, (64, 64, 256), stride=1)(x)    # 8 x 256 x 56 x 56
    x = IdentityBlock(256, 3, (64, 64, 256))(x)                  # 8 x 256 x 56 x 56

The defaults are those of the Keras course notebook: convolutions with bias, the stride on the first 1x1, batch-norm
epsilon 1e-3. keras.applications has epsilon 1.001e-5; torchvision and timm have no bias, the stride on the middle
convolution and epsilon 1e-5. Weights of one lineage load into another without any error and compute something else.
Papers: https://arxiv.org/abs/1512.03385, https://arxiv.org/abs/1603.05027 (`PreActivationBlock`),
https://arxiv.org/abs/1611.05431 (`groups`).
"""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from flowers_torch.errors import UsageError

Filters = tuple[int, int, int]
StridePlace = Literal["first", "middle"]
ShortcutKind = Literal["projection", "zero_pad", "none"]


class MainPath(nn.Sequential):
    """1x1, f x f and 1x1 convolution, each with batch norm, ReLU after the first two.

    Shapes: N x in_channels x H x W -> N x filters[2] x ceil(H / stride) x ceil(W / stride).

    Args:
        kernel_size: f of the middle convolution; an even f is padded right and below, as in TensorFlow.
        filters: Output channels of the three convolutions.
        stride_on: Which convolution has the stride: "first" (Keras) or "middle" (torchvision and timm).
        bias: Whether the convolutions have a bias. Batch norm makes it redundant; Keras's weights have it.
        epsilon: Added to the variance by batch norm.
        groups: Groups of the middle convolution; 32 makes a ResNet a ResNeXt.
    """

    def __init__(
        self,
        in_channels: int,
        kernel_size: int,
        filters: Filters,
        stride: int = 1,
        stride_on: StridePlace = "first",
        bias: bool = True,
        epsilon: float = 1e-3,
        groups: int = 1,
    ) -> None:
        super().__init__()
        first, middle, last = filters
        stride1, stride2 = (stride, 1) if stride_on == "first" else (1, stride)
        if stride2 > 1 and kernel_size % 2 == 0:
            what = f"a {kernel_size}x{kernel_size} convolution cannot be centered on every second pixel"
            raise UsageError(what, "use an odd kernel_size or stride_on='first'")
        padding = (kernel_size - 1) // 2
        self.conv1 = nn.Conv2d(in_channels, first, 1, stride1, bias=bias)
        self.bn1 = nn.BatchNorm2d(first, epsilon)
        self.relu1 = nn.ReLU()  # N x filters[0] x H/s x W/s, s = 1 if stride_on="middle"
        # torch's padding="same" pads like this too, but warns for even kernels and does not allow a stride.
        self.extra_pad = nn.Identity() if kernel_size % 2 else nn.ZeroPad2d((0, 1, 0, 1))
        self.conv2 = nn.Conv2d(first, middle, kernel_size, stride2, padding, groups=groups, bias=bias)
        self.bn2 = nn.BatchNorm2d(middle, epsilon)
        self.relu2 = nn.ReLU()  # N x filters[1] x H/stride x W/stride
        self.conv3 = nn.Conv2d(middle, last, 1, bias=bias)
        self.bn3 = nn.BatchNorm2d(last, epsilon)


class Projection(nn.Sequential):
    """A shortcut that changes the size: a 1x1 convolution with batch norm, the learned W_s of the paper."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, bias: bool, epsilon: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1, stride, bias=bias)
        self.bn = nn.BatchNorm2d(out_channels, epsilon)


class IdentityBlock(nn.Module):
    """Residual block for equal input and output size: relu(main(x) + x); arguments as in `MainPath`.

    Source: `identity_block` of the course notebook; keras.applications' `residual_block_v1`.

    Raises:
        UsageError: `in_channels` and `filters[2]` differ.
    """

    def __init__(
        self,
        in_channels: int,
        kernel_size: int,
        filters: Filters,
        *,
        bias: bool = True,
        epsilon: float = 1e-3,
        groups: int = 1,
    ) -> None:
        super().__init__()
        if in_channels != filters[2]:
            what = f"an identity block adds its {in_channels} input channels to {filters[2]} output channels"
            raise UsageError(what, "make them equal, or use ConvolutionalBlock")
        self.main = MainPath(in_channels, kernel_size, filters, bias=bias, epsilon=epsilon, groups=groups)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.main(x) + x)


class ConvolutionalBlock(nn.Module):
    """Residual block that changes the size: relu(main(x) + projection(x)); shapes and arguments as in `MainPath`.

    Source: `convolutional_block` of the course notebook; keras.applications' `residual_block_v1`.

    Raises:
        UsageError: a convolution with an even kernel has a stride.
    """

    def __init__(
        self,
        in_channels: int,
        kernel_size: int,
        filters: Filters,
        stride: int = 2,
        *,
        stride_on: StridePlace = "first",
        bias: bool = True,
        epsilon: float = 1e-3,
        groups: int = 1,
    ) -> None:
        super().__init__()
        self.main = MainPath(in_channels, kernel_size, filters, stride, stride_on, bias, epsilon, groups)
        self.shortcut = Projection(in_channels, filters[2], stride, bias, epsilon)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.main(x) + self.shortcut(x))


class PreActivationBlock(nn.Module):
    """Block of ResNetV2: batch norm and ReLU before each convolution, none after the sum.

    Shapes: N x in_channels x H x W -> N x 4 filters x ceil(H / stride) x ceil(W / stride).
    With `project` the shortcut is a 1x1 convolution of the activated input (with bias, without batch norm).
    Otherwise it is the input itself, subsampled by the stride.
    Source: keras.applications' `residual_block_v2`, with biases where its weights have them.
    """

    def __init__(self, in_channels: int, filters: int, stride: int = 1, project: bool = False) -> None:
        super().__init__()
        epsilon = 1.001e-5
        self.preact_bn = nn.BatchNorm2d(in_channels, epsilon)
        self.preact_relu = nn.ReLU()
        self.projection = nn.Conv2d(in_channels, 4 * filters, 1, stride) if project else None
        self.subsample = nn.MaxPool2d(1, stride) if stride > 1 and not project else None
        self.conv1 = nn.Conv2d(in_channels, filters, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(filters, epsilon)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(filters, filters, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(filters, epsilon)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(filters, 4 * filters, 1)

    def forward(self, x: Tensor) -> Tensor:
        activated = self.preact_relu(self.preact_bn(x))
        if self.projection is not None:
            shortcut = self.projection(activated)
        else:
            shortcut = x if self.subsample is None else self.subsample(x)
        x = self.relu1(self.bn1(self.conv1(activated)))
        x = self.relu2(self.bn2(self.conv2(x)))
        return self.conv3(x) + shortcut


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut, or without one as in a plain network.

    Shapes: N x in_channels x H x W -> N x out_channels x ceil(H / stride) x ceil(W / stride).
    Where the size changes, the shortcut "projection" is a learned 1x1 convolution, and "zero_pad" subsamples
    and appends zero channels. "none" builds no shortcut at all.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int = 1, shortcut: ShortcutKind = "projection"
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu2 = nn.ReLU()
        self.shortcut: nn.Module | None = None if shortcut == "none" else nn.Identity()
        if shortcut != "none" and (stride > 1 or in_channels != out_channels):
            self.shortcut = ZeroPadShortcut(in_channels, out_channels, stride)
            if shortcut == "projection":
                self.shortcut = Projection(in_channels, out_channels, stride, bias=False, epsilon=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu2(y if self.shortcut is None else y + self.shortcut(x))


class ZeroPadShortcut(nn.Module):
    """A shortcut without parameters: subsamples by the stride and appends zero channels (or drops some)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.extra_channels = out_channels - in_channels
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, 0, self.extra_channels))  # negative padding drops channels


def glorot_init_(network: nn.Module) -> None:
    """Initializes kernels Glorot-uniform and biases with zeros, as Keras does, in place.

    PyTorch's default values are smaller; deep networks without batch norm (VGG) do not learn from them.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
