"""Batches of features that were computed once, in the order and with the views of training."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from flowers_torch.data.loading.gpu_cache import cache_bytes_on, move
from flowers_torch.data.loading.loaders import EpochBatchSampler


class CachedFeatureBatches:
    """What a training step takes: `(features (N, D), labels (N,), positions (N,))` for each batch.

    Args:
        features: Of each view of each image, (views * images, D).
        labels: Class index of each image.
        order: Order of the batches. A view is taken modulo the number of cached views.
        paths: Files of the images, by position.
        device: Device that trains; the features stay there where they fit.
    """

    def __init__(
        self,
        features: Tensor,
        labels: Sequence[int] | Tensor,
        order: EpochBatchSampler,
        paths: Sequence[Path],
        device: torch.device | str = "cpu",
    ) -> None:
        self.features, self.labels = features, torch.as_tensor(labels)
        self.order, self.paths = order, list(paths)
        self.views, self.device = len(features) // len(labels), device
        self.cached = features.to(device) if features.nbytes <= cache_bytes_on(device) else features

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for keys in self.order:
            views, positions = torch.tensor(keys).unbind(1)
            rows = views % self.views * len(self.labels) + positions
            inputs = move(self.cached[move(rows, self.cached.device)], self.device).float()
            yield inputs, move(self.labels[positions], self.device), positions
