"""EfficientNets whose classifier also takes the widest maps of the last blocks."""

import sys
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from flowers_torch.models.efficientnet_lite import EfficientNetLite, InvertedResidual
from flowers_torch.models.heads import reset_set_classifier

SETS = ("wide",)
BLOCKS = 4  # whose maps enter the classifier
SMALL = 1e-4  # activations far below it do not dominate, and the root has a gradient at 0


class WideClassifier(nn.Module):
    """Mixin in front of an `EfficientNetLite` or timm's EfficientNet, whose classifier then takes several maps.

    Beside the network's own map these are the maps inside its last blocks, behind the depthwise convolution and its
    activation. A block projects its map to few channels, and the last layers form from these what tells ImageNet's
    classes apart. Channels that are rarely active count more by the square root. Tensor names stay as they are.
    """

    feature_set: str
    classifier: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """Maps (N, C, h, w) of images (N, 3, H, W), side by side: the network's own, then those inside its blocks."""
        model: Any = self
        blocks = list(chain.from_iterable(model.blocks))
        x, maps = _stem(model, x), []
        for block in blocks[:-BLOCKS]:
            x = block(x)
        for block in blocks[-BLOCKS:]:
            wide, x = _widest_and_output(block, x)
            maps.append(wide)
        return torch.cat([_last_map(model, x), *maps], 1)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits of maps, or the features (N, D)."""
        features: Tensor = self.global_pool(x)  # type: ignore[operator]
        if self.feature_set in SETS:
            features = root(features)
        features = nn.functional.dropout(features, float(self.drop_rate), self.training)  # type: ignore[arg-type]
        return features if pre_logits else self.classifier(features)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the classifier; what enters it stays."""
        reset_set_classifier(self, "classifier", sum(widths(self)), num_classes, global_pool)


# timm's norms contain their activations.


def _stem(model: Any, x: Tensor) -> Tensor:
    found: Tensor = model.stem(x) if isinstance(model, EfficientNetLite) else model.bn1(model.conv_stem(x))
    return found


def _last_map(model: Any, x: Tensor) -> Tensor:
    found: Tensor = model.last_map(x) if isinstance(model, EfficientNetLite) else model.bn2(model.conv_head(x))
    return found


def _widest_and_output(block: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """The map behind a block's depthwise convolution, and its output."""
    if isinstance(block, InvertedResidual):
        wide = block.widen(x)
        return wide, block.project(wide, x)
    wide = block.aa(block.bn2(block.conv_dw(block.bn1(block.conv_pw(x)))))
    projected = block.bn3(block.conv_pwl(block.se(wide)))
    return wide, block.drop_path(projected) + x if block.has_skip else projected


def root(features: Tensor) -> Tensor:
    """The square root of each feature's size, with its sign; features much smaller than `SMALL` stay linear."""
    return features / features.abs().add_(SMALL).sqrt_()  # in place: a large set of features is copied once less


def offered(model: nn.Module) -> tuple[str, ...]:
    """The set of an EfficientNet whose last blocks are inverted residuals of the usual form; else none."""
    network: Any = model
    if isinstance(model, EfficientNetLite):
        return SETS if network.global_pool.pool_type == "avg" else ()
    timm: Any = sys.modules.get("timm.models")  # loaded wherever a network is timm's
    if timm is None or not isinstance(model, timm.EfficientNet) or network.global_pool.pool_type != "avg":
        return ()
    last = list(chain.from_iterable(network.blocks))[-BLOCKS:]
    kind = timm._efficientnet_blocks.InvertedResidual
    usual = [type(block) is kind and getattr(block, "conv_s2d", None) is None for block in last]
    return SETS if all(usual) and isinstance(model.conv_head, nn.Conv2d) else ()


def widths(model: nn.Module) -> list[int]:
    """Channels of the network's own last map, and of those inside its last blocks."""
    network: Any = model
    last = list(chain.from_iterable(network.blocks))[-BLOCKS:]
    return [int(network.num_features), *(int(block.conv_pwl.in_channels) for block in last)]
