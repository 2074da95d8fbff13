"""`Network`, the base of the handwritten networks, and `MlpHead`, the head that they share.

`Network` offers timm's contract, so that training, freezing and export treat both kinds alike.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from torch import Tensor, nn

from flowers_torch.errors import UsageError
from flowers_torch.models.blocks import glorot_init_

POOLS = ("avg", "max", "flatten", "avg2x2", "")
T = TypeVar("T")


def variant(doc: str, network: Callable[..., T], *arguments: Any, **options: Any) -> Callable[..., T]:
    """A constructor with some arguments given; `doc` is what torch.hub.help shows."""
    build = partial(network, *arguments, **options)
    build.__doc__ = doc
    return build


class MlpHead(nn.Module):
    """From a feature map to logits, N x num_classes: pooling, hidden layers, classifier.

    With `pre_logits` or num_classes 0 it returns the classifier's input, N x num_features; with pool "" the map.

    Args:
        in_channels: Channels of the feature map.
        num_classes: Logits; 1 for a binary network (its sigmoid belongs to the loss); 0 for no classifier.
        pool: "avg" or "max" over the map, "flatten", "avg2x2" (2x2 windows, then flatten, as in the course's
            ResNet50), or "" for the map itself, which needs num_classes 0.
        hidden: Widths of the hidden layers, each followed by activation and dropout.
        dropout: Probability after each hidden layer, or after the pooling if there is none.
        map_size: Height and width of the feature map; only "flatten" and "avg2x2" depend on it.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        pool: str = "avg",
        hidden: Sequence[int] = (),
        dropout: float = 0.0,
        activation: type[nn.Module] = nn.ReLU,
        map_size: int = 1,
    ) -> None:
        super().__init__()
        self.in_channels, self.map_size = in_channels, map_size
        self.hidden, self.dropout, self.activation = tuple(hidden), dropout, activation
        self.pool: str | None = None  # not built yet
        self.reset(num_classes, pool)

    def reset(self, num_classes: int, pool: str | None = None) -> None:
        """Replaces the classifier, and the hidden layers too where the pooling changes."""
        pool = self.pool if pool is None else pool
        if pool not in POOLS:
            raise UsageError(f"unknown global pooling {pool!r}", f"use one of {', '.join(map(repr, POOLS))}")
        if pool == "" and num_classes:
            raise UsageError("without pooling there can be no classifier", "use num_classes=0 or a pooling")
        side = {"flatten": self.map_size, "avg2x2": self.map_size // 2}.get(pool, 1)
        if side < 1:
            raise UsageError(f"a {self.map_size}x{self.map_size} map is too small for {pool}", "use larger images")
        if pool != self.pool:
            self._build_hidden(pool, side)
        self.num_classes = num_classes
        self.fc = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        glorot_init_(self.fc)

    def _build_hidden(self, pool: str, side: int) -> None:
        poolings = {"avg": nn.AdaptiveAvgPool2d(1), "max": nn.AdaptiveMaxPool2d(1), "avg2x2": nn.AvgPool2d(2)}
        self.pool = pool
        self.global_pool: nn.Module = poolings.get(pool, nn.Identity())
        self.dense = nn.Sequential()
        self.num_features = self.in_channels * side * side
        for units in self.hidden if pool else ():
            self.dense.extend([nn.Linear(self.num_features, units), self.activation(), nn.Dropout(self.dropout)])
            self.num_features = units
        if self.dropout and not self.hidden:
            self.dense.append(nn.Dropout(self.dropout))
        glorot_init_(self.dense)

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        if self.pool == "":
            return x
        size = self.map_size
        if self.pool in ("flatten", "avg2x2") and x.shape[-2:] != (size, size):
            what = f"the head flattens maps of {size}x{size}, these images give {x.shape[-2]}x{x.shape[-1]}"
            raise UsageError(what, "use the input_size the network was built for, or global_pool='avg'")
        x = self.dense(self.global_pool(x).flatten(1))  # N x num_features
        return x if pre_logits else self.fc(x)


class Network(nn.Module):
    """A feature extractor and a `head`, its last module: N x in_chans x H x W -> N x num_classes.

    Parameters are in the order of the forward pass: "this block and all behind it" is a slice of them. A
    constructor ends with `add_head`. A subclass whose modules do not simply follow each other defines
    `forward_features`.

    All constructors take `num_classes` (logits; 0 for features), `in_chans` (image channels), `global_pool`
    (`pool` of `MlpHead`) and, where the head may flatten, `input_size` (height and width of the images).
    """

    head: MlpHead

    def add_head(self, in_channels: int, num_classes: int, pool: str, *hidden: int, **options: Any) -> None:
        """Initializes the feature extractor and puts an `MlpHead` behind it."""
        glorot_init_(self)
        self.head = MlpHead(in_channels, num_classes, pool, hidden, **options)

    @property
    def num_classes(self) -> int:
        """Number of logits; 0 without a classifier."""
        return self.head.num_classes

    @property
    def num_features(self) -> int:
        """Channels of the feature map (N x num_features x H x W)."""
        return self.head.in_channels

    @property
    def head_hidden_size(self) -> int:
        """Width of `forward_head(x, pre_logits=True)`."""
        return self.head.num_features

    def forward_features(self, x: Tensor) -> Tensor:
        """The last feature map, N x num_features x H x W: all modules but the head, one after another."""
        for name, module in self.named_children():
            if name != "head":
                x = module(x)
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits of a feature map, or the input of the classifier."""
        return self.head(x, pre_logits)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        """The layer that returns the logits."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the classifier; another `global_pool` (`pool` of `MlpHead`) also replaces the hidden layers."""
        reference = next(self.parameters())
        self.head.reset(num_classes, global_pool)
        self.head.to(reference.device, reference.dtype).train(self.head.training)
