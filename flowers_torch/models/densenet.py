"""DenseNet121, 169 and 201: the input of each layer is the output of all layers before it in its stage.

The networks of keras.applications; timm's and torchvision's differ only in the epsilon of batch norm.
Paper: Huang et al. 2017, https://arxiv.org/abs/1608.06993.
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn

from flowers_torch.models.network import Network, variant

GROWTH = 32  # growth rate: channels that each layer adds


class DenseLayer(nn.Module):
    """1x1 and 3x3 convolution, concatenated to the input: N x C x H x W -> N x C+32 x H x W."""

    def __init__(self, in_channels: int, epsilon: float) -> None:
        super().__init__()
        self.bn0 = nn.BatchNorm2d(in_channels, epsilon)
        self.relu0 = nn.ReLU()
        self.conv1 = nn.Conv2d(in_channels, 4 * GROWTH, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(4 * GROWTH, epsilon)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(4 * GROWTH, GROWTH, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(self.relu0(self.bn0(x)))
        y = self.conv2(self.relu1(self.bn1(y)))
        return torch.cat([x, y], 1)


def _transition(channels: int, epsilon: float) -> nn.Sequential:
    """Halves channels, height and width: N x C x H x W -> N x C/2 x H/2 x W/2, rounded down."""
    bn, conv = nn.BatchNorm2d(channels, epsilon), nn.Conv2d(channels, channels // 2, 1, bias=False)
    return nn.Sequential(OrderedDict(bn=bn, relu=nn.ReLU(), conv=conv, pool=nn.AvgPool2d(2)))


class DenseNet(Network):
    """Stem, four stages of dense layers (`depths`) with transitions between them, batch norm, ReLU, head.

    The `epsilon` of batch norm is 1.001e-5 for Keras's weights, 1e-5 for timm's.
    """

    def __init__(
        self,
        depths: tuple[int, int, int, int],
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        epsilon: float = 1.001e-5,
    ) -> None:
        super().__init__()
        conv, bn = nn.Conv2d(in_chans, 64, 7, stride=2, bias=False), nn.BatchNorm2d(64, epsilon)
        self.conv1 = nn.Sequential(OrderedDict(pad=nn.ZeroPad2d(3), conv=conv, bn=bn, relu=nn.ReLU()))
        self.pool1 = nn.Sequential(OrderedDict(pad=nn.ZeroPad2d(1), pool=nn.MaxPool2d(3, 2)))  # N x 64 x H/4 x W/4
        channels = 64
        self.stages = nn.Sequential()
        for number, depth in enumerate(depths, 2):
            layers = [(f"block{i + 1}", DenseLayer(channels + GROWTH * i, epsilon)) for i in range(depth)]
            channels += GROWTH * depth
            self.stages.add_module(f"conv{number}", nn.Sequential(OrderedDict(layers)))
            if number < 5:
                self.stages.add_module(f"pool{number}", _transition(channels, epsilon))
                channels //= 2
        self.bn = nn.BatchNorm2d(channels, epsilon)  # N x C x H/32 x W/32
        self.relu = nn.ReLU()
        self.add_head(channels, num_classes, global_pool)


densenet121 = variant("DenseNet121: 8,062,504 parameters as Keras counts them.", DenseNet, (6, 12, 24, 16))
densenet169 = variant("DenseNet169: 14,307,880 parameters as Keras counts them.", DenseNet, (6, 12, 32, 32))
densenet201 = variant("DenseNet201: 20,242,984 parameters as Keras counts them.", DenseNet, (6, 12, 48, 32))
