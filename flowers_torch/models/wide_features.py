"""EfficientNets whose classifier also takes the widest maps of the last block."""

from itertools import chain
from typing import Any

import torch
from timm.models._efficientnet_blocks import InvertedResidual
from timm.models.efficientnet import EfficientNet
from torch import Tensor, nn

SETS = ("wide",)


class WideClassifier(nn.Module):
    """Mixin in front of timm's EfficientNet, whose classifier then takes two maps side by side.

    The second is the map inside the last block, behind its depthwise convolution and activation. The block projects
    it to few channels, and the last layers form from these what tells ImageNet's classes apart. Tensor names stay.
    """

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.forward_head(self.forward_features(x))  # type: ignore[operator]
        return logits

    def forward_features(self, x: Tensor) -> Tensor:
        """Maps (N, C + C', h, w) of images (N, 3, H, W): the network's own, then those inside its last block."""
        model: Any = self
        *blocks, last = chain.from_iterable(model.blocks)
        x = model.bn1(model.conv_stem(x))
        for block in blocks:
            x = block(x)
        wide = last.bn1(last.conv_pw(x))
        wide = last.aa(last.bn2(last.conv_dw(wide)))
        projected = last.bn3(last.conv_pwl(last.se(wide)))
        x = last.drop_path(projected) + x if last.has_skip else projected
        x = model.bn2(model.conv_head(x))
        return torch.cat([x, wide], 1)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the classifier, and the pooling if another one is given."""
        super().reset_classifier(num_classes, global_pool)  # type: ignore[misc]
        reference = next(self.parameters())
        where: Any = {"device": reference.device, "dtype": reference.dtype}
        self.head_hidden_size = sum(widths(self))
        self.classifier = nn.Linear(self.head_hidden_size, num_classes, **where) if num_classes else nn.Identity()


def offered(model: nn.Module) -> tuple[str, ...]:
    """The set of an EfficientNet whose last block is an inverted residual of the usual form; else none."""
    if not isinstance(model, EfficientNet) or model.global_pool.pool_type != "avg":
        return ()
    *_, last = chain.from_iterable(model.blocks)
    plain = type(last) is InvertedResidual and getattr(last, "conv_s2d", None) is None
    return SETS if plain and isinstance(model.conv_head, nn.Conv2d) else ()


def widths(model: nn.Module) -> tuple[int, int]:
    """Channels of the network's own last map, and of that inside its last block."""
    network: Any = model
    *_, last = chain.from_iterable(network.blocks)
    return int(network.num_features), int(last.conv_pwl.in_channels)
