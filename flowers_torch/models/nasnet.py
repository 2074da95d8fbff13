"""NASNet-A, mobile and large, as in keras.applications: cells found by architecture search.

The inputs of a cell are the output of the cell before it (`x`) and of the one before that (`p`), which it adjusts
to the shape of `x`. Paper: Zoph et al. 2018, https://arxiv.org/abs/1707.07012.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from flowers_torch.models.network import Network, variant
from flowers_torch.models.tf_layers import Crop2d, SamePad2d, SeparableConv2d

EPSILON = 1e-3  # of batch norm
Adjust = Literal["keep", "project", "halve"]


class SeparableBlock(nn.Sequential):
    """Twice ReLU, separable convolution, batch norm: N x in_channels x H x W -> N x channels x H/s x W/s."""

    def __init__(self, in_channels: int, channels: int, kernel_size: int, stride: int = 1) -> None:
        super().__init__()
        self.relu1 = nn.ReLU()
        self.pad = SamePad2d(kernel_size) if stride == 2 else nn.Identity()
        self.conv1 = SeparableConv2d(in_channels, channels, kernel_size, stride)
        self.bn1 = nn.BatchNorm2d(channels, EPSILON)
        self.relu2 = nn.ReLU()
        self.conv2 = SeparableConv2d(channels, channels, kernel_size)
        self.bn2 = nn.BatchNorm2d(channels, EPSILON)


class Projection(nn.Sequential):
    """ReLU, 1x1 convolution, batch norm: N x in_channels x H x W -> N x channels x H x W."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        self.conv = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn = nn.BatchNorm2d(channels, EPSILON)


class FactorizedReduction(nn.Module):
    """Halves the size: half the channels from every second pixel, half from the pixels between them."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.relu1 = nn.ReLU()
        self.pool1 = nn.AvgPool2d(1, stride=2)
        self.conv1 = nn.Conv2d(in_channels, channels // 2, 1, bias=False)
        self.pad = nn.ZeroPad2d((0, 1, 0, 1))
        self.crop = Crop2d(1)
        self.pool2 = nn.AvgPool2d(1, stride=2)
        self.conv2 = nn.Conv2d(in_channels, channels // 2, 1, bias=False)
        self.bn = nn.BatchNorm2d(channels, EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu1(x)
        straight = self.conv1(self.pool1(x))
        shifted = self.conv2(self.pool2(self.crop(self.pad(x))))
        return self.bn(torch.cat([straight, shifted], 1))


def make_adjust(kind: Adjust, in_channels: int, channels: int) -> nn.Module:
    """A module that leaves `p` as it is, changes its channels ("project"), or also halves its size."""
    return {"keep": nn.Identity, "project": Projection, "halve": FactorizedReduction}[kind](in_channels, channels)


class NormalCell(nn.Module):
    """Keeps the size: x and p -> N x 6 channels x H x W; `adjust` is "halve" where p is twice as large as x."""

    def __init__(self, x_channels: int, p_channels: int, channels: int, adjust: Adjust) -> None:
        super().__init__()
        self.adjust = make_adjust(adjust, p_channels, channels)
        self.narrow = Projection(x_channels, channels)
        self.left1 = SeparableBlock(channels, channels, 5)
        self.right1 = SeparableBlock(channels, channels, 3)
        self.left2 = SeparableBlock(channels, channels, 5)
        self.right2 = SeparableBlock(channels, channels, 3)
        self.left3 = nn.AvgPool2d(3, 1, padding=1, count_include_pad=False)
        self.left4 = nn.AvgPool2d(3, 1, padding=1, count_include_pad=False)
        self.right4 = nn.AvgPool2d(3, 1, padding=1, count_include_pad=False)
        self.left5 = SeparableBlock(channels, channels, 3)

    def forward(self, x: Tensor, p: Tensor) -> Tensor:
        p = self.adjust(p)
        h = self.narrow(x)
        x1 = self.left1(h) + self.right1(p)
        x2 = self.left2(p) + self.right2(p)
        x3 = self.left3(h) + p
        x4 = self.left4(p) + self.right4(p)  # equal terms, as in the paper's figure and in Keras
        x5 = self.left5(h) + h
        return torch.cat([p, x1, x2, x3, x4, x5], 1)


class ReductionCell(nn.Module):
    """Halves the size: x and p -> N x 4 channels x ceil(H/2) x ceil(W/2); arguments as in `NormalCell`."""

    def __init__(self, x_channels: int, p_channels: int, channels: int, adjust: Adjust) -> None:
        super().__init__()
        self.adjust = make_adjust(adjust, p_channels, channels)
        p_channels = p_channels if adjust == "keep" else channels
        self.narrow = Projection(x_channels, channels)
        self.pad = SamePad2d(3)
        self.left1 = SeparableBlock(channels, channels, 5, stride=2)
        self.right1 = SeparableBlock(p_channels, channels, 7, stride=2)
        self.left2 = nn.MaxPool2d(3, 2)
        self.right2 = SeparableBlock(p_channels, channels, 7, stride=2)
        self.left3 = nn.AvgPool2d(3, 2)
        self.right3 = SeparableBlock(p_channels, channels, 5, stride=2)
        self.left4 = nn.AvgPool2d(3, 1, padding=1, count_include_pad=False)
        self.left5 = SeparableBlock(channels, channels, 3)
        self.right5 = nn.MaxPool2d(3, 2)

    def forward(self, x: Tensor, p: Tensor) -> Tensor:
        p = self.adjust(p)
        h = self.narrow(x)
        padded = self.pad(h)  # with zeros, unlike the pooling's own padding
        x1 = self.left1(h) + self.right1(p)
        x2 = self.left2(padded) + self.right2(p)
        x3 = self.left3(padded) + self.right3(p)
        x4 = x2 + self.left4(x1)
        x5 = self.left5(x1) + self.right5(padded)
        return torch.cat([x2, x3, x4, x5], 1)


class NASNet(Network):
    """NASNet-A (repeats @ features): stem, two reduction cells, three groups of normal cells, head.

    Args:
        repeats: Normal cells in each of the three groups.
        features: Channels of the last feature map; a multiple of 24.
        skip_reduction: The p of the first normal cell after a reduction cell: the p of the reduction cell
            (large) or its x (mobile).
    """

    def __init__(
        self,
        repeats: int,
        features: int,
        stem_channels: int,
        skip_reduction: bool,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
    ) -> None:
        super().__init__()
        self.skip_reduction = skip_reduction
        self.stem_conv = nn.Conv2d(in_chans, stem_channels, 3, stride=2, bias=False)
        self.stem_bn = nn.BatchNorm2d(stem_channels, EPSILON)

        channels = features // 24
        self.cell_names: list[str] = []
        x, p = stem_channels, stem_channels  # channels of the last two outputs
        adjust: Adjust = "keep"

        def add(name: str, cell: type[NormalCell] | type[ReductionCell], width: int) -> None:
            nonlocal x, p, adjust
            self.add_module(name, cell(x, p, width, adjust))
            self.cell_names.append(name)
            is_reduction = cell is ReductionCell
            # The next cell's p is this one's x or, after a skipped reduction, this one's p.
            if not (is_reduction and skip_reduction and name.startswith("reduce")):
                p = x
            x = width * (4 if is_reduction else 6)
            adjust = "halve" if is_reduction else "project"

        add("stem_1", ReductionCell, channels // 4)
        add("stem_2", ReductionCell, channels // 2)
        for group, width in enumerate((channels, 2 * channels, 4 * channels)):
            if group:
                add(f"reduce_{group * repeats}", ReductionCell, width)
            for i in range(repeats):
                add(f"normal_{group * repeats + i + bool(group)}", NormalCell, width)
        self.relu = nn.ReLU()
        self.add_head(x, num_classes, global_pool)

    def forward_features(self, x: Tensor) -> Tensor:
        x = self.stem_bn(self.stem_conv(x))  # N x stem_channels x H/2 x W/2
        p = x
        for name in self.cell_names:
            y = self.get_submodule(name)(x, p)
            if not (self.skip_reduction and name.startswith("reduce")):
                p = x
            x = y
        return self.relu(x)  # N x features x H/32 x W/32


MOBILE = "NASNet-A (4 @ 1056): 5,326,716 parameters as Keras counts them."
LARGE = "NASNet-A (6 @ 4032): 88,949,818 parameters as Keras counts them."
nasnet_mobile = variant(MOBILE, NASNet, 4, 1056, 32, False)
nasnet_large = variant(LARGE, NASNet, 6, 4032, 96, True)
