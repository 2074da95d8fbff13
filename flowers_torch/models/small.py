"""Small networks to train from scratch: for the Happy House, for very little data, for CIFAR-10.

A binary network has num_classes=1, one logit, and trains with `binary_cross_entropy_with_logits`. `standardize` is
the kind of `Standardize`, or empty.
"""

from torch import Tensor, nn

from flowers_torch.models.network import Network
from flowers_torch.models.standardize import standardization


class HappyModel(Network):
    """A 7x7 convolution with batch norm, 2x2 max pooling and a dense layer.

    Keras counts 37,633 parameters with one logit. Source: the course notebook "the Happy House".
    """

    def __init__(
        self,
        num_classes: int = 1,
        in_chans: int = 3,
        input_size: int = 64,
        global_pool: str = "flatten",
        standardize: str = "",
    ) -> None:
        super().__init__()
        self.standardize = standardization(standardize, in_chans, input_size)
        self.pad = nn.ZeroPad2d(3)
        self.conv0 = nn.Conv2d(in_chans, 32, 7)
        self.bn0 = nn.BatchNorm2d(32, 1e-3)
        self.relu = nn.ReLU()  # N x 32 x 64 x 64
        self.max_pool = nn.MaxPool2d(2)  # N x 32 x 32 x 32
        self.add_head(32, num_classes, global_pool, map_size=input_size // 2)


class HappyBlocks(Network):
    """Blocks of a 3x3 convolution with 32 filters, batch norm, ReLU and 2x2 max pooling, and a dense layer.

    There are as many blocks as bring the map to 4x4 or less: four for 64x64 images. Keras counts 29,665 parameters with
    one logit then. Source: the exercise of the course notebook "the Happy House".
    """

    def __init__(
        self, num_classes: int = 1, in_chans: int = 3, input_size: int = 64, global_pool: str = "flatten"
    ) -> None:
        super().__init__()
        self.blocks, channels, side = nn.Sequential(), in_chans, input_size
        while side > 4:
            convolution = nn.Conv2d(channels, 32, 3, padding=1)
            self.blocks.append(nn.Sequential(convolution, nn.BatchNorm2d(32, 1e-3), nn.ReLU(), nn.MaxPool2d(2)))
            channels, side = 32, side // 2  # N x 32 x side x side
        self.add_head(32, num_classes, global_pool, map_size=side)


class SmallConvNet(Network):
    """Three 3x3 convolutions (32, 32, 64), a dense layer of 64 with dropout.

    1,212,513 parameters with one logit and 150x150 images.
    Source: "Building powerful image classification models using very little data", Keras blog, 2016.
    """

    def __init__(
        self,
        num_classes: int = 1,
        in_chans: int = 3,
        dropout: float = 0.5,
        input_size: int = 150,
        global_pool: str = "flatten",
        standardize: str = "",
    ) -> None:
        super().__init__()
        self.standardize = standardization(standardize, in_chans, input_size)
        self.conv1 = nn.Conv2d(in_chans, 32, 3)
        self.conv2 = nn.Conv2d(32, 32, 3)
        self.conv3 = nn.Conv2d(32, 64, 3)
        self.relu = nn.ReLU()
        self.max_pool = nn.MaxPool2d(2)
        side = (((input_size - 2) // 2 - 2) // 2 - 2) // 2
        self.add_head(64, num_classes, global_pool, 64, dropout=dropout, map_size=side)

    def forward_features(self, x: Tensor) -> Tensor:
        x = self.max_pool(self.relu(self.conv1(self.standardize(x))))  # N x 32 x 74 x 74
        x = self.max_pool(self.relu(self.conv2(x)))  # N x 32 x 36 x 36
        return self.max_pool(self.relu(self.conv3(x)))  # N x 64 x 17 x 17


class Cifar10Net(Network):
    """Two pairs of 3x3 convolutions (32-32, 64-64) and a dense layer of 512: 1,250,858 parameters.

    `dropout` follows the dense layer, half of it each pair of convolutions. Source: Keras's example `cifar10_cnn`.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_chans: int = 3,
        dropout: float = 0.5,
        input_size: int = 32,
        global_pool: str = "flatten",
        standardize: str = "",
    ) -> None:
        super().__init__()
        self.standardize = standardization(standardize, in_chans, input_size)
        self.conv1 = nn.Conv2d(in_chans, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 32, 3)  # without padding, in both pairs
        self.conv3 = nn.Conv2d(32, 64, 3, padding=1)
        self.conv4 = nn.Conv2d(64, 64, 3)
        self.relu = nn.ReLU()
        self.max_pool = nn.MaxPool2d(2)
        self.drop = nn.Dropout(dropout / 2)
        side = ((input_size - 2) // 2 - 2) // 2
        self.add_head(64, num_classes, global_pool, 512, dropout=dropout, map_size=side)

    def forward_features(self, x: Tensor) -> Tensor:
        x = self.relu(self.conv1(self.standardize(x)))  # N x 32 x 32 x 32
        x = self.relu(self.conv2(x))  # N x 32 x 30 x 30
        x = self.drop(self.max_pool(x))  # N x 32 x 15 x 15
        x = self.relu(self.conv3(x))  # N x 64 x 15 x 15
        x = self.relu(self.conv4(x))  # N x 64 x 13 x 13
        return self.drop(self.max_pool(x))  # N x 64 x 6 x 6


happy_model, happy_blocks = HappyModel, HappyBlocks
small_convnet, cifar10_net = SmallConvNet, Cifar10Net
