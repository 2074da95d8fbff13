"""Feature sets: which tokens of a vision transformer enter its linear classifier, beside those that timm pools.

The papers of transformers probe the class token, the mean of the patch tokens, both side by side, or the class tokens
of the last blocks and the mean of the patches (DINOv2). Each token is normalized as those of the last block are.
"""

import functools
from typing import Any

import torch
from torch import Tensor, nn

from flowers_torch.errors import UsageError, printable

BLOCKS = 4  # whose class tokens DINOv2 probes
SETS = ("token", "mean", "token+mean", f"last{BLOCKS}")  # names in ModelInfo, where "" is what timm pools
EVERY = "every"  # all that the sets consist of, once; for the cache of features
POOLED, MEAN = "pooled", "mean"  # parts of a set: what the network's attention pools, and the mean of the patches
Part = str | int  # the class token of a block is its index from the end


class TokenClassifier(nn.Module):
    """Mixin in front of a transformer of timm, whose classifier then takes the tokens of a feature set.

    Tensor names stay as they are. `forward_features` returns the tokens (N, T, C) of the last block; where the set
    has class tokens of `BLOCKS` blocks, those of all of these side by side (N, T, BLOCKS * C).
    """

    feature_set: str
    blocks: Any
    num_features: int
    num_prefix_tokens: int
    norm: Any
    fc_norm: Any
    head: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """Tokens of images (N, 3, H, W), those of earlier blocks first."""
        count = _depth(self, self.feature_set)
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
        for part in _parts(self, self.feature_set):
            if part == POOLED:
                parts.append(self.pool(of_blocks[-1]))  # type: ignore[operator]
            elif part == MEAN:
                parts.append(of_blocks[-1][:, prefix:].mean(1))
            else:
                parts.append(of_blocks[part][:, 0])
        features: Tensor = self.head_drop(torch.cat([self.fc_norm(part) for part in parts], 1))  # type: ignore[operator]
        return features if pre_logits else self.head(features)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the classifier; what enters it stays."""
        if global_pool:
            raise ValueError(f"the classifier takes the feature set {self.feature_set}")
        reference = next(self.parameters())
        where: Any = {"device": reference.device, "dtype": reference.dtype}
        width = len(_parts(self, self.feature_set)) * self.num_features
        self.num_classes, self.head_hidden_size = num_classes, width
        self.head = nn.Linear(width, num_classes, **where) if num_classes else nn.Identity()


def offered_sets(model: nn.Module) -> tuple[str, ...]:
    """The feature sets that a network's classifier can take, "" (its own) first; only "" of other networks.

    A set that is the network's own under another name is not listed.
    """
    if not _has_tokens(model):
        return ("",)
    own, with_class = _own_part(model), getattr(model, "cls_token", None) is not None
    sets = SETS if len(model.blocks) >= BLOCKS else SETS[:-1]  # type: ignore[arg-type]
    same = "token" if own == -1 else own
    return ("", *(name for name in sets if name != same and (with_class or name == MEAN)))


def set_features(model: nn.Module, name: str) -> None:
    """Makes a feature set (one of `offered_sets`, or `EVERY`) enter the classifier, in place.

    The classifier has the former width until `reset_classifier`.

    Raises:
        UsageError: the network does not offer the set.
    """
    if name not in (*offered_sets(model), EVERY):
        offered = " or ".join(filter(None, offered_sets(model))) or "none"
        what = f"{type(model).__name__} has no feature set {printable(name)!r}"
        raise UsageError(what, f"use {offered}, or leave it out")
    timm_class = type(model).__mro__[2] if isinstance(model, TokenClassifier) else type(model)
    network: Any = model
    if name:
        network.__class__, network.feature_set = _with_sets(timm_class), name
    else:
        network.__class__ = timm_class
        network.__dict__.pop("feature_set", None)


def columns(model: nn.Module, name: str) -> list[int]:
    """The columns that a set of `offered_sets` has among those of `EVERY`."""
    every, width = _parts(model, EVERY), int(model.num_features)  # type: ignore[arg-type]
    return [part * width + i for part in map(every.index, _parts(model, name)) for i in range(width)]


@functools.cache
def _with_sets(timm_class: type[nn.Module]) -> type[nn.Module]:
    return type(timm_class.__name__, (TokenClassifier, timm_class), {})


def _has_tokens(model: nn.Module) -> bool:
    """Whether it is a plain transformer of timm: tokens of one width, one linear classifier, a known pooling."""
    needed = ("blocks", "num_prefix_tokens", "forward_intermediates", "norm", "fc_norm", "head_drop", "head")
    if not all(hasattr(model, name) for name in needed) or hasattr(model, "head_dist"):
        return False
    return _own_part(model) != ""


def _own_part(model: nn.Module) -> Part:
    """What timm's network pools, as a part; empty if it is none of them."""
    if getattr(model, "attn_pool", None) is not None:
        return POOLED
    of_patches = "" if getattr(model, "pool_include_prefix", False) else MEAN
    parts: dict[str, Part] = {"token": -1, "avg": of_patches}
    return parts.get(getattr(model, "global_pool", ""), "")


def _parts(model: nn.Module, name: str) -> list[Part]:
    """The parts of a set, each of the width of a token."""
    own, offered = _own_part(model), offered_sets(model)
    tokens: list[Part] = [*range(-BLOCKS if SETS[-1] in offered else -1, 0)]
    if name == EVERY:
        with_class = getattr(model, "cls_token", None) is not None
        return [*[POOLED] * (own == POOLED), *(tokens if with_class else []), MEAN]
    sets: dict[str, list[Part]] = {"": [own], "token": [-1], "mean": [MEAN], "token+mean": [-1, MEAN]}
    return sets.get(name) or [*tokens, MEAN]


def _depth(model: nn.Module, name: str) -> int:
    """How many of the last blocks the parts of a set come from."""
    return max(-part if isinstance(part, int) else 1 for part in _parts(model, name))
