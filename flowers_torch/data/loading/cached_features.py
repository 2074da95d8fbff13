"""Batches of what was computed once and stored, in the order and with the views of training."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from flowers_torch.data.loading.gpu_cache import cache_bytes_on, move
from flowers_torch.data.loading.loaders import EpochBatchSampler


class CachedFeatureBatches:
    """What a training step takes: `(inputs (N, ...), labels (N,), positions (N,))`, read from a store.

    Args:
        values: Of each view of each photo: (views * photos, ...), maps with the channels last.
        labels: Class index of each photo.
        order: Of the batches; a view that it asks for is taken modulo the number of views stored.
        paths: Of the photos, by position.
        device: That trains; the values stay there where they fit.
    """

    def __init__(
        self,
        values: Tensor,
        labels: Sequence[int],
        order: EpochBatchSampler,
        paths: Sequence[Path],
        device: torch.device | str = "cpu",
    ) -> None:
        self.values, self.labels, self.order, self.paths = values, torch.tensor(labels), order, list(paths)
        self.views, self.device = len(values) // len(labels), device
        self.near = values.to(device) if values.nbytes <= cache_bytes_on(device) else values

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for keys in self.order:
            views, positions = torch.tensor(keys).unbind(1)
            rows = views % self.views * len(self.labels) + positions
            values = move(self.near[move(rows, self.near.device)], self.device).float()
            inputs = values.permute(0, 3, 1, 2) if values.ndim == 4 else values
            yield inputs, move(self.labels[positions], self.device), positions
