"""Transformers of timm whose classifier takes other tokens than timm's network pools."""

from typing import Any

import torch
from torch import Tensor, nn

from flowers_torch.models.heads import reset_set_classifier

BLOCKS = 4  # whose class tokens DINOv2 probes
SETS = ("token", "mean", "token+mean", f"last{BLOCKS}")
POOLED, MEAN = "pooled", "mean"  # parts of a set: what the network's attention pools, and the mean of the patches
Part = str | int  # the class token of a block is its index from the end


class TokenClassifier(nn.Module):
    """Mixin in front of a transformer of timm, whose classifier then takes the tokens of a feature set.

    Tensor names stay as they are. `forward_features` returns the tokens (N, T, C) of the last block; where the set
    has class tokens of `BLOCKS` blocks, those of all of these side by side (N, T, BLOCKS * C). Each token is
    normalized as those of the last block are.
    """

    feature_set: str
    head: nn.Module
    num_features: int
    num_prefix_tokens: int

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """Tokens of images (N, 3, H, W), those of earlier blocks first."""
        parts = parts_of(self, self.feature_set)
        count = max(-part if isinstance(part, int) else 1 for part in parts)
        if count == 1:
            tokens: Tensor = super().forward_features(x)  # type: ignore[misc]
            return tokens
        how: dict[str, Any] = {"return_prefix_tokens": True, "norm": True, "output_fmt": "NLC"}
        found = self.forward_intermediates(x, indices=count, intermediates_only=True, **how)  # type: ignore[operator]
        return torch.cat([torch.cat([prefix, patches], 1) for patches, prefix in found], 2)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits of tokens, or the features (N, D) of the set."""
        of_blocks, prefix = x.split(self.num_features, 2), self.num_prefix_tokens
        parts = []
        for part in parts_of(self, self.feature_set):
            if part == POOLED:
                parts.append(self.pool(of_blocks[-1]))  # type: ignore[operator]
            elif part == MEAN:
                parts.append(of_blocks[-1][:, prefix:].mean(1))
            elif isinstance(part, int):
                parts.append(of_blocks[part][:, 0])
        features: Tensor = self.head_drop(torch.cat([self.fc_norm(part) for part in parts], 1))  # type: ignore[operator]
        return features if pre_logits else self.head(features)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the classifier; what enters it stays."""
        width = len(parts_of(self, self.feature_set)) * self.num_features
        reset_set_classifier(self, "head", width, num_classes, global_pool)


def offered(model: nn.Module) -> tuple[str, ...]:
    """The sets of a plain transformer of timm beside its own; none of other networks.

    It has tokens of one width, one linear classifier, and pools the class token, the mean of the patches, or by
    attention. A set that is its own under another name is left out.
    """
    needed = ("blocks", "num_prefix_tokens", "forward_intermediates", "norm", "fc_norm", "head_drop", "head")
    own = _own_part(model)
    if own == "" or hasattr(model, "head_dist") or not all(hasattr(model, name) for name in needed):
        return ()
    same = "token" if own == -1 else own
    return tuple(name for name in _sets(model) if name != same and (_has_class_token(model) or name == MEAN))


def parts_of(model: nn.Module, name: str) -> list[Part]:
    """The parts of a set, each of the width of a token; `name` may also be "every", for those of all sets."""
    own, sets = _own_part(model), _sets(model)
    tokens: list[Part] = [*range(-BLOCKS if SETS[-1] in sets else -1, 0)]
    if name == "every":
        return [*[POOLED] * (own == POOLED), *(tokens if _has_class_token(model) else []), MEAN]
    found: dict[str, list[Part]] = {"": [own], "token": [-1], "mean": [MEAN], "token+mean": [-1, MEAN]}
    return found.get(name) or [*tokens, MEAN]


def _sets(model: nn.Module) -> tuple[str, ...]:
    return SETS if len(model.blocks) >= BLOCKS else SETS[:-1]  # type: ignore[arg-type]


def _has_class_token(model: nn.Module) -> bool:
    return getattr(model, "cls_token", None) is not None


def _own_part(model: nn.Module) -> Part:
    """What timm's network pools, as a part; empty if it is none of them."""
    if getattr(model, "attn_pool", None) is not None:
        return POOLED
    of_patches = "" if getattr(model, "pool_include_prefix", False) else MEAN
    parts: dict[str, Part] = {"token": -1, "avg": of_patches}
    pooling = getattr(model, "global_pool", "")
    return parts.get(pooling, "") if isinstance(pooling, str) else ""
