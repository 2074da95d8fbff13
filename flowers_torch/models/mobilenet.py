"""MobileNet and MobileNetV2 of any width, as in keras.applications.

Both pad like TensorFlow: "same" in the first convolution, and right and below in MobileNet's strided
depthwise convolutions. timm's networks pad symmetrically.
Papers: https://arxiv.org/abs/1704.04861, https://arxiv.org/abs/1801.04381.
"""

from collections import OrderedDict

from torch import Tensor, nn

from flowers_torch.models.network import Network
from flowers_torch.models.tf_layers import Conv2dSame, SamePad2d

EPSILON = 1e-3  # of batch norm: Keras's default


def make_divisible(width: float, divisor: int = 8) -> int:
    """The nearest multiple of `divisor` that is at least `divisor` and at least 90% of `width`."""
    rounded = max(divisor, int(width + divisor / 2) // divisor * divisor)
    return rounded if rounded >= 0.9 * width else rounded + divisor


def _stem(in_chans: int, channels: int) -> nn.Sequential:
    conv = Conv2dSame(in_chans, channels, 3, stride=2, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(channels, EPSILON), relu=nn.ReLU6()))


class DepthwiseBlock(nn.Sequential):
    """Depthwise 3x3 and 1x1 convolution, each with batch norm and ReLU6.

    Shapes: N x in_channels x H x W -> N x out_channels x H x W; stride 2 halves H and W, rounded down.
    """

    def __init__(self, in_channels: int, out_channels: int, multiplier: int, stride: int) -> None:
        super().__init__()
        wide = in_channels * multiplier
        self.pad = nn.ZeroPad2d((0, 1, 0, 1)) if stride == 2 else nn.Identity()
        padding = 1 if stride == 1 else 0
        self.dw = nn.Conv2d(in_channels, wide, 3, stride, padding, groups=in_channels, bias=False)
        self.dw_bn = nn.BatchNorm2d(wide, EPSILON)
        self.dw_relu = nn.ReLU6()
        self.pw = nn.Conv2d(wide, out_channels, 1, bias=False)
        self.pw_bn = nn.BatchNorm2d(out_channels, EPSILON)
        self.pw_relu = nn.ReLU6()


class MobileNet(Network):
    """Stem, 13 depthwise blocks, head: 4,253,864 parameters as Keras counts them.

    Args:
        alpha: Factor of all widths (weights are published for 0.25, 0.5, 0.75 and 1).
        depth_multiplier: Depthwise filters per channel.
        dropout: Probability before the classifier.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        alpha: float = 1.0,
        depth_multiplier: int = 1,
        dropout: float = 1e-3,
    ) -> None:
        super().__init__()
        widths = [int(w * alpha) for w in (32, 64, 128, 128, 256, 256, *[512] * 6, 1024, 1024)]
        self.conv1 = _stem(in_chans, widths[0])  # N x 32 alpha x H/2 x W/2
        self.blocks = nn.Sequential(
            OrderedDict(
                (f"block{i}", DepthwiseBlock(widths[i - 1], widths[i], depth_multiplier, stride))
                for i, stride in enumerate((1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1), 1)
            )
        )
        self.add_head(widths[-1], num_classes, global_pool, dropout=dropout)


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise 3x3, 1x1 projection without activation; residual where the shapes agree.

    `expansion` is the factor of the middle's width; 1 omits the first convolution.
    Shapes: N x in_channels x H x W -> N x out_channels x ceil(H/stride) x ceil(W/stride).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = in_channels * expansion
        self.expand = nn.Sequential()
        if expansion > 1:
            conv = nn.Conv2d(in_channels, wide, 1, bias=False)
            self.expand = nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(wide, EPSILON), relu=nn.ReLU6()))
        self.pad = SamePad2d(3) if stride == 2 else nn.Identity()
        padding = 1 if stride == 1 else 0
        self.depthwise = nn.Conv2d(wide, wide, 3, stride, padding, groups=wide, bias=False)
        self.depthwise_bn = nn.BatchNorm2d(wide, EPSILON)
        self.depthwise_relu = nn.ReLU6()
        self.project = nn.Conv2d(wide, out_channels, 1, bias=False)
        self.project_bn = nn.BatchNorm2d(out_channels, EPSILON)
        self.is_residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        y = self.pad(self.expand(x))
        y = self.depthwise_relu(self.depthwise_bn(self.depthwise(y)))
        y = self.project_bn(self.project(y))
        return x + y if self.is_residual else y


class MobileNetV2(Network):
    """Stem, 17 inverted residuals, a 1x1 convolution, head: 3,538,984 parameters as Keras counts them.

    `alpha` is the factor of all widths except, below 1, the last (weights are published for 0.35 to 1.4).
    """

    def __init__(
        self, num_classes: int = 1000, in_chans: int = 3, global_pool: str = "avg", alpha: float = 1.0
    ) -> None:
        super().__init__()
        channels = make_divisible(32 * alpha)
        self.conv1 = _stem(in_chans, channels)  # N x 32 alpha x H/2 x W/2
        self.blocks = nn.Sequential()
        # Width, repeats, stride and expansion, as in the paper's table 2
        rows = (
            (16, 1, 1, 1),
            (24, 2, 2, 6),
            (32, 3, 2, 6),
            (64, 4, 2, 6),
            (96, 3, 1, 6),
            (160, 3, 2, 6),
            (320, 1, 1, 6),
        )
        for width, repeats, stride, expansion in rows:
            for i in range(repeats):
                out_channels = make_divisible(int(width * alpha))
                self.blocks.append(InvertedResidual(channels, out_channels, stride if i == 0 else 1, expansion))
                channels = out_channels
        last = make_divisible(1280 * alpha) if alpha > 1 else 1280
        self.conv_last = nn.Conv2d(channels, last, 1, bias=False)  # N x 1280 x H/32 x W/32
        self.bn_last = nn.BatchNorm2d(last, EPSILON)
        self.relu_last = nn.ReLU6()
        self.add_head(last, num_classes, global_pool)


mobilenet, mobilenet_v2 = MobileNet, MobileNetV2
