"""InceptionV3 with timm's parameter names and either kind of average pooling, for which timm has no option.

Keras's weights need pooling that leaves the padding out of the mean; the wrong pooling changes the last features
by 10%. The weights of timm and torchvision count the padding as zeros, PyTorch's default.
Paper: Szegedy et al. 2015, https://arxiv.org/abs/1512.00567.
"""

import torch
from torch import Tensor, nn

from flowers_torch.models.timm_style import TimmStyle

Size = int | tuple[int, int]
Branches = dict[str, list[tuple[int, Size]]]  # width and kernel size of each convolution


class ConvNormAct(nn.Sequential):
    """Convolution without bias, batch norm (epsilon 1e-3 as in TensorFlow), ReLU."""

    def __init__(self, in_channels: int, out_channels: int, size: Size, stride: int = 1, padding: Size = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, size, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=1e-3)
        self.act = nn.ReLU(inplace=True)


def _same(size: Size) -> Size:
    """The padding that keeps height and width."""
    return (size[0] // 2, size[1] // 2) if isinstance(size, tuple) else size // 2


def _average_pool(count_include_pad: bool) -> nn.AvgPool2d:
    return nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=count_include_pad)


class Mixed(nn.Module):
    """Concatenated branches of convolutions and of a 3x3 pooling.

    With `pooled` channels behind an average pooling it keeps height and width. Without them, the pooling is a
    max pooling; it and the last convolution of each branch halve height and width.
    """

    def __init__(self, in_channels: int, branches: Branches, pooled: int = 0, pad: bool = True) -> None:
        super().__init__()
        self.branches: list[list[str]] = []  # names of the layers
        for branch, layers in branches.items():
            names = [f"{branch}_{i}" for i in range(1, len(layers) + 1)] if len(layers) > 1 else [branch]
            channels = in_channels
            for name, (width, size) in zip(names, layers, strict=True):
                stride = 1 if pooled or name != names[-1] else 2
                self.add_module(name, ConvNormAct(channels, width, size, stride, _same(size) if stride == 1 else 0))
                channels = width
            self.branches.append(names)
        self.pool: nn.Module = _average_pool(pad) if pooled else nn.MaxPool2d(3, stride=2)
        self.branches.append(["pool"])
        if pooled:
            self.branch_pool = ConvNormAct(in_channels, pooled, 1)
            self.branches[-1].append("branch_pool")

    def forward(self, x: Tensor) -> Tensor:
        outputs = []
        for names in self.branches:
            y = x
            for name in names:
                y = self.get_submodule(name)(y)
            outputs.append(y)
        return torch.cat(outputs, 1)


def inception_a(in_channels: int, pooled: int, pad: bool) -> Mixed:
    """1x1, 5x5, double 3x3 and pooling branches: N x C x H x W -> N x (224 + pooled) x H x W."""
    double3x3: list[tuple[int, Size]] = [(64, 1), (96, 3), (96, 3)]
    branches: Branches = {"branch1x1": [(64, 1)], "branch5x5": [(48, 1), (64, 5)], "branch3x3dbl": double3x3}
    return Mixed(in_channels, branches, pooled, pad)


def inception_b(in_channels: int) -> Mixed:
    """Halves height and width: N x C x H x W -> N x (480 + C) x H/2 x W/2."""
    return Mixed(in_channels, {"branch3x3": [(384, 3)], "branch3x3dbl": [(64, 1), (96, 3), (96, 3)]})


def inception_c(in_channels: int, narrow: int, pad: bool) -> Mixed:
    """7x7 convolutions factorized into 1x7 and 7x1: N x C x H x W -> N x 768 x H x W."""
    n, row, column = narrow, (1, 7), (7, 1)
    branches: Branches = {
        "branch1x1": [(192, 1)],
        "branch7x7": [(n, 1), (n, row), (192, column)],
        "branch7x7dbl": [(n, 1), (n, column), (n, row), (n, column), (192, row)],
    }
    return Mixed(in_channels, branches, 192, pad)


def inception_d(in_channels: int) -> Mixed:
    """Halves height and width again: N x C x H x W -> N x (512 + C) x H/2 x W/2."""
    branch7x7x3: list[tuple[int, Size]] = [(192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3)]
    return Mixed(in_channels, {"branch3x3": [(192, 1), (320, 3)], "branch7x7x3": branch7x7x3})


class InceptionE(nn.Module):
    """Branches that split into 1x3 and 3x1: N x C x H x W -> N x 2048 x H x W."""

    def __init__(self, in_channels: int, count_include_pad: bool) -> None:
        super().__init__()
        self.branch1x1 = ConvNormAct(in_channels, 320, 1)
        self.branch3x3_1 = ConvNormAct(in_channels, 384, 1)
        self.branch3x3_2a = ConvNormAct(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3_2b = ConvNormAct(384, 384, (3, 1), padding=(1, 0))
        self.branch3x3dbl_1 = ConvNormAct(in_channels, 448, 1)
        self.branch3x3dbl_2 = ConvNormAct(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = ConvNormAct(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3dbl_3b = ConvNormAct(384, 384, (3, 1), padding=(1, 0))
        self.pool = _average_pool(count_include_pad)
        self.branch_pool = ConvNormAct(in_channels, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        b1 = self.branch1x1(x)
        b3 = self.branch3x3_1(x)
        b3 = torch.cat([self.branch3x3_2a(b3), self.branch3x3_2b(b3)], 1)
        b3dbl = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        b3dbl = torch.cat([self.branch3x3dbl_3a(b3dbl), self.branch3x3dbl_3b(b3dbl)], 1)
        bp = self.branch_pool(self.pool(x))
        return torch.cat([b1, b3, b3dbl, bp], 1)


class InceptionV3(TimmStyle):
    """InceptionV3 without auxiliary classifier: N x in_chans x 299 x 299 -> N x num_classes; arguments as in timm.

    The inner average poolings count their zero padding as in timm and torchvision, or leave it out as in Keras.
    """

    classifier_name = "fc"

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        global_pool: str = "avg",
        count_include_pad: bool = True,
    ) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = ConvNormAct(in_chans, 32, 3, stride=2)  # N x 32 x 149 x 149
        self.Conv2d_2a_3x3 = ConvNormAct(32, 32, 3)
        self.Conv2d_2b_3x3 = ConvNormAct(32, 64, 3, padding=1)  # N x 64 x 147 x 147
        self.Pool1 = nn.MaxPool2d(3, stride=2)  # N x 64 x 73 x 73
        self.Conv2d_3b_1x1 = ConvNormAct(64, 80, 1)
        self.Conv2d_4a_3x3 = ConvNormAct(80, 192, 3)  # N x 192 x 71 x 71
        self.Pool2 = nn.MaxPool2d(3, stride=2)  # N x 192 x 35 x 35
        self.Mixed_5b = inception_a(192, 32, count_include_pad)  # N x 256 x 35 x 35
        self.Mixed_5c = inception_a(256, 64, count_include_pad)  # N x 288 x 35 x 35
        self.Mixed_5d = inception_a(288, 64, count_include_pad)
        self.Mixed_6a = inception_b(288)  # N x 768 x 17 x 17
        self.Mixed_6b = inception_c(768, 128, count_include_pad)
        self.Mixed_6c = inception_c(768, 160, count_include_pad)
        self.Mixed_6d = inception_c(768, 160, count_include_pad)
        self.Mixed_6e = inception_c(768, 192, count_include_pad)
        self.Mixed_7a = inception_d(768)  # N x 1280 x 8 x 8
        self.Mixed_7b = InceptionE(1280, count_include_pad)  # N x 2048 x 8 x 8
        self.Mixed_7c = InceptionE(2048, count_include_pad)
        self.feature_names = [name for name, _ in self.named_children()]
        # The weights get Kaiming's standard deviations: timm's fixed one of 0.1 trains slower.
        self.add_head(2048, num_classes, global_pool, drop_rate)

    def forward_features(self, x: Tensor) -> Tensor:
        """The last feature map, N x 2048 x 8 x 8 at 299 pixels."""
        for name in self.feature_names:
            x = self.get_submodule(name)(x)
        return x
