"""SqueezeNet 1.1, with the names of torchvision's modules.

Its head is that of this package: a linear layer behind the average of the features. torchvision's classifier has a
ReLU in between, so its weights do not fit there.
Paper: https://arxiv.org/abs/1602.07360.
"""

import torch
from torch import Tensor, nn

from flowers_torch.models.network import Network


class Fire(nn.Module):
    """A narrow 1x1 convolution, then 1x1 and 3x3 side by side: N x in_channels x H x W -> N x 2 width x H x W."""

    def __init__(self, in_channels: int, narrow: int, width: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(in_channels, narrow, 1)
        self.squeeze_activation = nn.ReLU()
        self.expand1x1 = nn.Conv2d(narrow, width, 1)
        self.expand1x1_activation = nn.ReLU()
        self.expand3x3 = nn.Conv2d(narrow, width, 3, padding=1)
        self.expand3x3_activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze_activation(self.squeeze(x))
        left, right = self.expand1x1(x), self.expand3x3(x)
        return torch.cat([self.expand1x1_activation(left), self.expand3x3_activation(right)], 1)


class SqueezeNet(Network):
    """A 3x3 convolution and eight Fire modules: 722,496 parameters below the head, N x 512 x H/16 x W/16.

    With `ceil_mode` the last row and column of a map take part in the pooling, as in torchvision; in Keras they do not.
    """

    def __init__(
        self, num_classes: int = 1000, in_chans: int = 3, global_pool: str = "avg", ceil_mode: bool = True
    ) -> None:
        super().__init__()
        pools = [nn.MaxPool2d(3, 2, ceil_mode=ceil_mode) for _ in range(3)]
        stem = [nn.Conv2d(in_chans, 64, 3, stride=2), nn.ReLU(), pools[0], Fire(64, 16, 64), Fire(128, 16, 64)]
        middle = [pools[1], Fire(128, 32, 128), Fire(256, 32, 128), pools[2], Fire(256, 48, 192), Fire(384, 48, 192)]
        self.features = nn.Sequential(*stem, *middle, Fire(384, 64, 256), Fire(512, 64, 256))
        self.add_head(512, num_classes, global_pool)


squeezenet = SqueezeNet
