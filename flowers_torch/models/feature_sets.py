"""Feature sets: what enters the linear classifier of a network, beside what its authors chose.

The papers of transformers probe the class token, the mean of the patch tokens, both side by side, or the class tokens
of the last blocks and the mean of the patches (DINOv2). An EfficientNet offers the widest maps of its last blocks.
"""

import dataclasses
import functools
from typing import Any

from torch import Tensor, nn

from flowers_torch.errors import UsageError, printable
from flowers_torch.models import token_features, wide_features

SETS = (*token_features.SETS, *wide_features.SETS)  # names in ModelInfo, where "" is what the network pools itself
EVERY = "every"  # all that the sets of a network consist of, once; for the cache of features
KINDS = (
    (token_features.TokenClassifier, token_features.offered),
    (wide_features.WideClassifier, wide_features.offered),
)


def offered_sets(model: nn.Module) -> tuple[str, ...]:
    """The feature sets that a network's classifier can take, "" (its own) first; only "" of most networks."""
    return ("", *(name for _, offered in KINDS for name in offered(model)))


def set_features(model: nn.Module, name: str) -> None:
    """Makes a feature set (one of `offered_sets`, or `EVERY`) enter the classifier, in place.

    The classifier has the former width until `reset_classifier`.

    Raises:
        UsageError: the network does not offer the set.
    """
    sets = offered_sets(model)
    if name not in sets and not (name == EVERY and len(sets) > 1):
        what = f"{type(model).__name__} has no feature set {printable(name)!r}"
        raise UsageError(what, f"use {' or '.join(filter(None, sets)) or 'none'}, or leave it out")
    mixins = [mixin for mixin, offered in KINDS if offered(model)]
    is_mixed = any(isinstance(model, mixin) for mixin in mixins)
    original = type(model).__mro__[2] if is_mixed else type(model)
    network: Any = model
    if name:
        network.__class__, network.feature_set = _mixed(mixins[0], original), name
    elif is_mixed:
        network.__class__ = original
        del network.feature_set


@dataclasses.dataclass(frozen=True)
class Selection:
    """A feature set among the features of `EVERY`."""

    columns: tuple[int, ...]
    is_rooted: bool = False  # by `wide_features.root`

    def of(self, features: Tensor) -> Tensor:
        """The features (N, D) of the set from those of `EVERY`."""
        first, count = self.columns[0], len(self.columns)
        is_range = self.columns == (*range(first, first + count),)  # of which a view needs no memory
        found = features[:, first : first + count] if is_range else features[:, list(self.columns)]
        return wide_features.root(found) if self.is_rooted else found


def selection(model: nn.Module, name: str) -> Selection:
    """Where a set of `offered_sets` is among the features of `EVERY`."""
    if wide_features.offered(model):
        own, *others = wide_features.widths(model)
        return Selection((*range(own + sum(others)),), is_rooted=True) if name else Selection((*range(own),))
    every, width = token_features.parts_of(model, EVERY), int(model.num_features)  # type: ignore[arg-type]
    places = [every.index(part) for part in token_features.parts_of(model, name)]
    return Selection(tuple(place * width + column for place in places for column in range(width)))


@functools.cache
def _mixed(mixin: type[nn.Module], original: type[nn.Module]) -> type[nn.Module]:
    return type(original.__name__, (mixin, original), {})
