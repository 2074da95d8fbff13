"""`TimmStyle`, the base of handwritten networks whose tensors have timm's names, so that files fit both."""

from typing import Any, ClassVar

from torch import Tensor, nn

from flowers_torch.errors import UsageError

POOLINGS: dict[str, type[nn.Module]] = {"avg": nn.AdaptiveAvgPool2d, "max": nn.AdaptiveMaxPool2d}


class TimmStyle(nn.Module):
    """timm's contract: a feature extractor, then pooling, dropout and a linear classifier.

    A subclass names its classifier in `classifier_name`, ends its constructor with `add_head` and defines
    `forward_features`, from images (N, C, H, W) to the last map (N, num_features, h, w).
    """

    classifier_name: ClassVar[str]

    def add_head(self, num_features: int, num_classes: int, global_pool: str, drop_rate: float) -> None:
        """Adds what is behind the last map, and initializes all; arguments as those of timm's constructors."""
        self.num_features, self.drop_rate = num_features, drop_rate
        self.global_pool: GlobalPool
        self.head_drop = nn.Dropout(drop_rate)
        self.reset_classifier(num_classes, global_pool)
        for module in self.modules():
            # On the meta device random values need torch._dynamo, which takes a second to import.
            if isinstance(module, nn.Conv2d | nn.Linear) and not module.weight.is_meta:
                nn.init.kaiming_normal_(module.weight)

    def forward_features(self, x: Tensor) -> Tensor:
        """The last feature map (N, num_features, h, w)."""
        raise NotImplementedError

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits of a feature map, or with `pre_logits` the input of the classifier."""
        x = self.head_drop(self.global_pool(x))
        return x if pre_logits else self.get_classifier()(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        """The layer that returns the logits; it passes the features on where there are no classes."""
        return self.get_submodule(self.classifier_name)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the classifier.

        Args:
            num_classes: Logits; 0 for none.
            global_pool: "avg" or "max" over the map, "" for the map itself, which needs num_classes 0; None keeps the
                pooling.

        Raises:
            UsageError: there is no such pooling, or classes without a pooling.
        """
        pool_type = self.global_pool.pool_type if global_pool is None else global_pool
        if pool_type == "" and num_classes:
            raise UsageError("without pooling there can be no classifier", "use num_classes=0 or a pooling")
        reference = next(self.parameters())
        where: Any = {"device": reference.device, "dtype": reference.dtype}
        self.num_classes, self.head_hidden_size = num_classes, self.num_features
        self.global_pool = GlobalPool(pool_type).train(self.training)
        classifier = nn.Linear(self.num_features, num_classes, **where) if num_classes else nn.Identity()
        setattr(self, self.classifier_name, classifier.train(self.training))


class GlobalPool(nn.Sequential):
    """From a map (N, C, h, w) to features (N, C); without a pooling the map itself."""

    def __init__(self, pool_type: str) -> None:
        if pool_type not in ("", *POOLINGS):
            raise UsageError(f"unknown global pooling {pool_type!r}", f"use one of {', '.join(POOLINGS)}")
        super().__init__(*([POOLINGS[pool_type](1), nn.Flatten()] if pool_type else []))
        self.pool_type = pool_type
