"""LeNet-5, AlexNet, VGG16 and VGG19.

Their heads flatten the last feature map of one `input_size`. With global_pool="avg" they take any size.
"""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from flowers_torch.models.network import Network, variant


class LeNet5(Network):
    """Two 5x5 convolutions with 2x2 pooling, dense layers of 120 and 84: 61,706 parameters.

    The `activation` follows every layer but the last. The feature map of 32x32 images is N x 16 x 5 x 5.

    Source: LeCun et al., "Gradient-Based Learning Applied to Document Recognition", 1998, as it is taught
    today: without trainable pooling coefficients, partial connections and radial basis outputs.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_chans: int = 1,
        pool: Literal["avg", "max"] = "avg",
        activation: Literal["tanh", "sigmoid", "relu"] = "tanh",
        input_size: int = 32,
        global_pool: str = "flatten",
    ) -> None:
        super().__init__()
        function = {"tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "relu": nn.ReLU}[activation]
        self.conv1 = nn.Conv2d(in_chans, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.activation = function()
        self.pool = {"avg": nn.AvgPool2d, "max": nn.MaxPool2d}[pool](2)
        side = ((input_size - 4) // 2 - 4) // 2
        self.add_head(16, num_classes, global_pool, 120, 84, activation=function, map_size=side)

    def forward_features(self, x: Tensor) -> Tensor:
        x = self.pool(self.activation(self.conv1(x)))  # N x 6 x 14 x 14
        return self.pool(self.activation(self.conv2(x)))  # N x 16 x 5 x 5


class AlexNet(Network):
    """Five convolutions, overlapping 3x3/2 max pooling, two dense layers of 4096 with dropout.

    60,965,224 parameters with 1000 classes in two groups, 62,378,344 in one. The feature map is N x 256 x 6 x 6.

    Args:
        response_norm: Whether local response normalization follows the first two convolutions.
        groups: 2 for the paper's convolutions, which were split over two GPUs; 1 for ordinary ones.

    Source: Krizhevsky, Sutskever and Hinton, "ImageNet Classification with Deep Convolutional Neural
    Networks", 2012. The paper's sizes need 227 pixels; a padding of 2 gives the same 55x55 map for 224.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        response_norm: bool = False,
        groups: int = 2,
        dropout: float = 0.5,
        input_size: int = 224,
        global_pool: str = "flatten",
    ) -> None:
        super().__init__()

        def norm() -> nn.Module:
            # The paper multiplies alpha with the sum; torch divides the sum by `size` first.
            return nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2) if response_norm else nn.Identity()

        self.conv1 = nn.Conv2d(in_chans, 96, 11, stride=4, padding=2)
        self.norm1 = norm()
        self.conv2 = nn.Conv2d(96, 256, 5, padding=2, groups=groups)
        self.norm2 = norm()
        self.conv3 = nn.Conv2d(256, 384, 3, padding=1)
        self.conv4 = nn.Conv2d(384, 384, 3, padding=1, groups=groups)
        self.conv5 = nn.Conv2d(384, 256, 3, padding=1, groups=groups)
        self.relu = nn.ReLU()
        self.max_pool = nn.MaxPool2d(3, stride=2)
        side = (input_size - 7) // 4 + 1
        for _ in range(3):
            side = (side - 3) // 2 + 1
        self.add_head(256, num_classes, global_pool, 4096, 4096, dropout=dropout, map_size=side)

    def forward_features(self, x: Tensor) -> Tensor:
        x = self.norm1(self.relu(self.conv1(x)))  # N x 96 x 55 x 55
        x = self.norm2(self.relu(self.conv2(self.max_pool(x))))  # N x 256 x 27 x 27
        x = self.relu(self.conv3(self.max_pool(x)))  # N x 384 x 13 x 13
        x = self.relu(self.conv4(x))  # N x 384 x 13 x 13
        x = self.relu(self.conv5(x))  # N x 256 x 13 x 13
        return self.max_pool(x)  # N x 256 x 6 x 6


class VGG(Network):
    """Five blocks of 3x3 convolutions with ReLU and 2x2 max pooling, dense head.

    The feature map is N x 512 x H/32 x W/32, rounded down.

    Args:
        depths: Convolutions in each of the five blocks.
        hidden: Widths of the dense layers; `()` for a bottleneck under another head.
        dropout: Probability after each dense layer; 0.5 in the paper, none in keras.applications.

    Source: Simonyan and Zisserman, https://arxiv.org/abs/1409.1556; layer names of keras.applications.
    """

    def __init__(
        self,
        depths: tuple[int, int, int, int, int],
        num_classes: int = 1000,
        in_chans: int = 3,
        hidden: Sequence[int] = (4096, 4096),
        dropout: float = 0.0,
        input_size: int = 224,
        global_pool: str = "flatten",
    ) -> None:
        super().__init__()
        for number, (depth, channels) in enumerate(zip(depths, (64, 128, 256, 512, 512), strict=True), 1):
            block = nn.Sequential()
            for i in range(1, depth + 1):
                block.add_module(f"conv{i}", nn.Conv2d(in_chans, channels, 3, padding=1))
                block.add_module(f"relu{i}", nn.ReLU())
                in_chans = channels
            block.add_module("pool", nn.MaxPool2d(2))
            self.add_module(f"block{number}", block)  # N x 64 x H/2 x W/2 ... N x 512 x H/32 x W/32
        self.add_head(512, num_classes, global_pool, *hidden, dropout=dropout, map_size=input_size // 32)


MODERN = "LeNet-5 in its modern form: max pooling and ReLU; options as in `LeNet5`."
VGG16 = "VGG16: 138,357,544 parameters with 1000 classes, 14,714,688 of them below the head."
VGG19 = "VGG19: 143,667,240 parameters with 1000 classes, 20,024,384 of them below the head."

lenet5, alexnet = LeNet5, AlexNet
lenet5_relu = variant(MODERN, LeNet5, pool="max", activation="relu")
vgg16 = variant(VGG16, VGG, (2, 2, 3, 3, 3))
vgg19 = variant(VGG19, VGG, (2, 2, 4, 4, 4))
