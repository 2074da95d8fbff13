"""Xception: depthwise separable convolutions with residual connections, as in keras.applications.

timm's `legacy_xception` has Keras's weights, but pads symmetrically and has a batch-norm epsilon of 1e-5.
Paper: Chollet 2017, https://arxiv.org/abs/1610.02357.
"""

from collections import OrderedDict

from torch import Tensor, nn

from flowers_torch.models.network import Network
from flowers_torch.models.tf_layers import MaxPool2dSame, SeparableConv2d

EPSILON = 1e-3  # of batch norm: Keras's default


class EntryBlock(nn.Module):
    """Two separable convolutions with pooling, plus a strided 1x1 convolution of the input.

    Shapes: N x in_channels x H x W -> N x out_channels x ceil(H/2) x ceil(W/2).
    """

    def __init__(self, in_channels: int, out_channels: int, middle_channels: int, relu_first: bool = True) -> None:
        super().__init__()
        conv = nn.Conv2d(in_channels, out_channels, 1, stride=2, bias=False)
        self.residual = nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(out_channels, EPSILON)))
        self.sepconv1_act = nn.ReLU() if relu_first else nn.Identity()
        self.sepconv1 = SeparableConv2d(in_channels, middle_channels, 3)
        self.sepconv1_bn = nn.BatchNorm2d(middle_channels, EPSILON)
        self.sepconv2_act = nn.ReLU()
        self.sepconv2 = SeparableConv2d(middle_channels, out_channels, 3)
        self.sepconv2_bn = nn.BatchNorm2d(out_channels, EPSILON)
        self.pool = MaxPool2dSame(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        residual = self.residual(x)
        x = self.sepconv1_bn(self.sepconv1(self.sepconv1_act(x)))
        x = self.sepconv2_bn(self.sepconv2(self.sepconv2_act(x)))
        return self.pool(x) + residual


class MiddleBlock(nn.Module):
    """Three times ReLU, separable convolution, batch norm, added to the input: N x 728 x H x W."""

    def __init__(self, channels: int = 728) -> None:
        super().__init__()
        self.layers = nn.Sequential()
        for i in (1, 2, 3):
            self.layers.add_module(f"sepconv{i}_act", nn.ReLU())
            self.layers.add_module(f"sepconv{i}", SeparableConv2d(channels, channels, 3))
            self.layers.add_module(f"sepconv{i}_bn", nn.BatchNorm2d(channels, EPSILON))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x) + x


class Xception(Network):
    """Entry flow of blocks 1 to 4, middle flow of blocks 5 to 12, exit flow of blocks 13 and 14, head.

    22,910,480 parameters as Keras counts them; the feature map of 299x299 images is N x 2048 x 10 x 10.
    """

    def __init__(self, num_classes: int = 1000, in_chans: int = 3, global_pool: str = "avg") -> None:
        super().__init__()
        layers: dict[str, nn.Module] = dict(
            conv1=nn.Conv2d(in_chans, 32, 3, stride=2, bias=False),
            conv1_bn=nn.BatchNorm2d(32, EPSILON),
            conv1_act=nn.ReLU(),
            conv2=nn.Conv2d(32, 64, 3, bias=False),
            conv2_bn=nn.BatchNorm2d(64, EPSILON),
            conv2_act=nn.ReLU(),
        )
        self.block1 = nn.Sequential(OrderedDict(layers))
        self.block2 = EntryBlock(64, 128, 128, relu_first=False)  # N x 128 x 74 x 74
        self.block3 = EntryBlock(128, 256, 256)  # N x 256 x 37 x 37
        self.block4 = EntryBlock(256, 728, 728)  # N x 728 x 19 x 19
        self.middle = nn.Sequential(OrderedDict((f"block{i}", MiddleBlock()) for i in range(5, 13)))
        self.block13 = EntryBlock(728, 1024, 728)  # N x 1024 x 10 x 10
        layers = dict(
            sepconv1=SeparableConv2d(1024, 1536, 3),
            sepconv1_bn=nn.BatchNorm2d(1536, EPSILON),
            sepconv1_act=nn.ReLU(),
            sepconv2=SeparableConv2d(1536, 2048, 3),
            sepconv2_bn=nn.BatchNorm2d(2048, EPSILON),
            sepconv2_act=nn.ReLU(),
        )
        self.block14 = nn.Sequential(OrderedDict(layers))
        self.add_head(2048, num_classes, global_pool)


xception = Xception
