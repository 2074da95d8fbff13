"""EfficientNet-Lite0 to 4 with timm's parameter names: networks for processors and phones.

EfficientNets without squeeze-and-excitation and with ReLU6, whose first and last layers do not grow. They pad like
TensorFlow, in which Google trained them.
Paper: Tan and Le 2019, https://arxiv.org/abs/1905.11946.
"""

import math

from torch import Tensor, nn

from flowers_torch.models.mobilenet import EPSILON, make_divisible
from flowers_torch.models.network import variant
from flowers_torch.models.tf_layers import Conv2dSame
from flowers_torch.models.timm_style import TimmStyle

# Blocks, kernel size, stride, expansion and channels of each stage, as in the paper's table 1
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STEM, LAST = 32, 1280  # channels


def _depthwise(channels: int, kernel_size: int, stride: int) -> nn.Conv2d:
    if stride > 1:
        return Conv2dSame(channels, channels, kernel_size, stride, groups=channels, bias=False)
    return nn.Conv2d(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels, bias=False)


class DepthwiseSeparable(nn.Module):
    """Depthwise convolution, 1x1 projection without activation: N x C x H x W -> N x C' x H x W."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__()
        self.conv_dw = _depthwise(in_channels, kernel_size, stride=1)
        self.bn1 = nn.BatchNorm2d(in_channels, EPSILON)
        self.act1 = nn.ReLU6(inplace=True)
        self.conv_pw = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels, EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act1(self.bn1(self.conv_dw(x)))
        return self.bn2(self.conv_pw(x))


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise convolution, 1x1 projection without activation; residual where the shapes agree.

    Shapes: N x in_channels x H x W -> N x out_channels x ceil(H/stride) x ceil(W/stride).
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = in_channels * expansion
        self.conv_pw = nn.Conv2d(in_channels, wide, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(wide, EPSILON)
        self.act1 = nn.ReLU6(inplace=True)
        self.conv_dw = _depthwise(wide, kernel_size, stride)
        self.bn2 = nn.BatchNorm2d(wide, EPSILON)
        self.act2 = nn.ReLU6(inplace=True)
        self.conv_pwl = nn.Conv2d(wide, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels, EPSILON)
        self.has_skip = stride == 1 and in_channels == out_channels

    def widen(self, x: Tensor) -> Tensor:
        """The map behind the depthwise convolution and its activation, the widest of the block."""
        x = self.act1(self.bn1(self.conv_pw(x)))
        return self.act2(self.bn2(self.conv_dw(x)))

    def project(self, wide: Tensor, x: Tensor) -> Tensor:
        """The block's output from its widest map and its input."""
        projected: Tensor = self.bn3(self.conv_pwl(wide))
        return projected + x if self.has_skip else projected

    def forward(self, x: Tensor) -> Tensor:
        return self.project(self.widen(x), x)


class EfficientNetLite(TimmStyle):
    """Stem, seven stages of blocks, a 1x1 convolution, classifier: N x in_chans x H x W -> N x num_classes.

    Args:
        width: Factor of the channels of all stages.
        depth: Factor of the number of blocks in all stages but the first and the last.
        drop_rate: Probability of dropout before the classifier; the others as in timm.
    """

    classifier_name = "classifier"

    def __init__(
        self,
        width: float,
        depth: float,
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        global_pool: str = "avg",
    ) -> None:
        super().__init__()
        self.conv_stem = Conv2dSame(in_chans, STEM, 3, stride=2, bias=False)  # N x 32 x H/2 x W/2
        self.bn1 = nn.BatchNorm2d(STEM, EPSILON)
        self.act1 = nn.ReLU6(inplace=True)
        self.blocks = nn.Sequential()
        channels = STEM
        for repeats, kernel_size, stride, expansion, base in STAGES:
            out_channels = make_divisible(base * width)
            stage = nn.Sequential()
            for i in range(math.ceil(repeats * depth) if repeats > 1 else 1):
                if expansion == 1:
                    stage.append(DepthwiseSeparable(channels, out_channels, kernel_size))
                else:
                    first = stride if i == 0 else 1
                    stage.append(InvertedResidual(channels, out_channels, kernel_size, first, expansion))
                channels = out_channels
            self.blocks.append(stage)
        self.conv_head = nn.Conv2d(channels, LAST, 1, bias=False)  # N x 1280 x H/32 x W/32
        self.bn2 = nn.BatchNorm2d(LAST, EPSILON)
        self.act2 = nn.ReLU6(inplace=True)
        self.add_head(LAST, num_classes, global_pool, drop_rate)

    def forward_features(self, x: Tensor) -> Tensor:
        """The last feature map, N x 1280 x H/32 x W/32."""
        return self.last_map(self.blocks(self.stem(x)))

    def stem(self, x: Tensor) -> Tensor:
        """What the first block takes, N x 32 x H/2 x W/2."""
        return self.act1(self.bn1(self.conv_stem(x)))

    def last_map(self, x: Tensor) -> Tensor:
        """The last feature map from the output of the last block."""
        return self.act2(self.bn2(self.conv_head(x)))


VARIANTS = (
    variant("EfficientNet-Lite0: 4,652,008 parameters.", EfficientNetLite, 1.0, 1.0),
    variant("EfficientNet-Lite1: 5,416,680 parameters.", EfficientNetLite, 1.0, 1.1),
    variant("EfficientNet-Lite2: 6,092,072 parameters.", EfficientNetLite, 1.1, 1.2),
    variant("EfficientNet-Lite3: 8,197,096 parameters.", EfficientNetLite, 1.2, 1.4),
    variant("EfficientNet-Lite4: 13,006,568 parameters.", EfficientNetLite, 1.4, 1.8),
)
