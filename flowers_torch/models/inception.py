"""GoogLeNet, its Inception modules and its auxiliary classifiers.

An Inception module computes filters of several sizes and concatenates the results. A 1x1 convolution reduces
the channels before the expensive 3x3 and 5x5 filters:

    28x28x192 -> 5x5, 32 filters                        120,422,400 multiplications
    28x28x192 -> 1x1, 16 filters -> 5x5, 32 filters      12,443,648

(`examples/inception_multiplications.py` counts them.)
Papers: Lin et al., "Network in Network" (https://arxiv.org/abs/1312.4400); Szegedy et al., "Going Deeper
with Convolutions" (https://arxiv.org/abs/1409.4842), table 1.
"""

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from flowers_torch.models.blocks import glorot_init_
from flowers_torch.models.network import MlpHead, Network


class ConvUnit(nn.Sequential):
    """Convolution with "same" padding, batch norm or a bias, ReLU.

    Shapes: N x in_channels x H x W -> N x out_channels x ceil(H / stride) x ceil(W / stride).
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, batch_norm: bool = True
    ) -> None:
        super().__init__()
        padding = kernel_size // 2
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, bias=not batch_norm)
        if batch_norm:
            self.bn = nn.BatchNorm2d(out_channels, 1e-3)
        self.relu = nn.ReLU()


class Widths(NamedTuple):
    """Output channels of the six convolutions of an Inception module."""

    only1x1: int
    reduce3x3: int  # the bottleneck before the 3x3
    conv3x3: int
    reduce5x5: int  # the bottleneck before the 5x5
    conv5x5: int
    after_pool: int

    @property
    def total(self) -> int:
        """Channels of the module's output."""
        return self.only1x1 + self.conv3x3 + self.conv5x5 + self.after_pool


class InceptionModule(nn.Module):
    """Four concatenated branches: 1x1; 1x1 and 3x3; 1x1 and 5x5; 3x3 max pooling and 1x1.

    Shapes: N x in_channels x H x W -> N x widths.total x H x W.
    Each convolution has batch norm, or a bias as in the paper.
    """

    def __init__(self, in_channels: int, widths: Widths, batch_norm: bool = True) -> None:
        super().__init__()
        unit, w = partial(ConvUnit, batch_norm=batch_norm), widths
        self.branch1 = unit(in_channels, w.only1x1, 1)
        self.branch2 = nn.Sequential(unit(in_channels, w.reduce3x3, 1), unit(w.reduce3x3, w.conv3x3, 3))
        self.branch3 = nn.Sequential(unit(in_channels, w.reduce5x5, 1), unit(w.reduce5x5, w.conv5x5, 5))
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), unit(in_channels, w.after_pool, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], dim=1)


class AuxiliaryHead(nn.Module):
    """A classifier in the middle of the network, whose loss gives the lower layers more gradient."""

    def __init__(self, in_channels: int, num_classes: int, batch_norm: bool = True) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(4)
        self.conv = ConvUnit(in_channels, 128, 1, batch_norm=batch_norm)
        self.dense = nn.Linear(128 * 4 * 4, 1024)
        self.relu = nn.ReLU()
        self.drop = nn.Dropout(0.7)
        self.fc = nn.Linear(1024, num_classes) if num_classes else nn.Identity()
        glorot_init_(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.pool(x)).flatten(1)  # N x 2048
        return self.fc(self.drop(self.relu(self.dense(x))))


class GoogLeNet(Network):
    """The first Inception network: stem, nine modules, global average, dropout, dense layer.

    6,998,552 parameters with 1000 classes, without batch norm and auxiliary classifiers. Without batch norm it
    is harder to train. In training with `aux_logits` it returns a tuple of three logits: the main ones, those of
    the lower and those of the upper auxiliary classifier.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        aux_logits: bool = False,
        batch_norm: bool = True,
        global_pool: str = "avg",
        input_size: int = 224,
    ) -> None:
        super().__init__()

        def module(in_channels: int, *widths: int) -> InceptionModule:
            return InceptionModule(in_channels, Widths(*widths), batch_norm)

        unit, downsample = partial(ConvUnit, batch_norm=batch_norm), partial(nn.MaxPool2d, 3, stride=2, padding=1)
        stem = (unit(in_chans, 64, 7, stride=2), downsample(), unit(64, 64, 1), unit(64, 192, 3), downsample())
        self.stem = nn.Sequential(*stem)
        self.lower = nn.Sequential(
            module(192, 64, 96, 128, 16, 32, 32),  # 3a
            module(256, 128, 128, 192, 32, 96, 64),  # 3b
            downsample(),
            module(480, 192, 96, 208, 16, 48, 64),  # 4a
        )
        self.middle = nn.Sequential(
            module(512, 160, 112, 224, 24, 64, 64),  # 4b
            module(512, 128, 128, 256, 24, 64, 64),  # 4c
            module(512, 112, 144, 288, 32, 64, 64),  # 4d
        )
        self.upper = nn.Sequential(
            module(528, 256, 160, 320, 32, 128, 128),  # 4e
            downsample(),
            module(832, 256, 160, 320, 32, 128, 128),  # 5a
            module(832, 384, 192, 384, 48, 128, 128),  # 5b
        )
        glorot_init_(self)
        # Heads come last, so that "this block and all behind it" includes all of them.
        self.lower_aux = AuxiliaryHead(512, num_classes, batch_norm) if aux_logits else None
        self.middle_aux = AuxiliaryHead(528, num_classes, batch_norm) if aux_logits else None
        self.head = MlpHead(1024, num_classes, global_pool, dropout=0.4, map_size=(input_size + 31) // 32)

    def forward_features(self, x: Tensor) -> Tensor:
        x = self.stem(x)  # N x 192 x H/8 x W/8
        x = self.lower(x)  # N x 512 x H/16 x W/16
        x = self.middle(x)  # N x 528 x H/16 x W/16
        return self.upper(x)  # N x 1024 x H/32 x W/32

    def forward(self, x: Tensor) -> Any:
        if not self.training or self.lower_aux is None or self.middle_aux is None:
            return super().forward(x)
        lower = self.lower(self.stem(x))
        middle = self.middle(lower)
        logits = self.forward_head(self.upper(middle))
        return logits, self.lower_aux(lower), self.middle_aux(middle)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the classifier and the last layers of the auxiliary classifiers."""
        super().reset_classifier(num_classes, global_pool)
        for auxiliary in (self.lower_aux, self.middle_aux):
            if auxiliary is not None:
                auxiliary.fc = nn.Linear(1024, num_classes) if num_classes else nn.Identity()
                reference = auxiliary.dense.weight
                auxiliary.fc.to(reference.device, reference.dtype).train(self.training)
                glorot_init_(auxiliary.fc)


googlenet = GoogLeNet
