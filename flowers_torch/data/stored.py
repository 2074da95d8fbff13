"""Batches of what was computed once and stored, in the order and with the views of training."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from flowers_torch.data.loaders import CountedBatches


class StoredBatches:
    """What a training step takes: `(inputs (N, ...), labels (N,), positions (N,))`, read from a store.

    Args:
        values: Of each view of each photo: (views * photos, ...), maps with the channels last.
        labels: Class index of each photo.
        order: Of the batches; a view that it asks for is taken modulo the number of views stored.
        paths: Of the photos, by position.
    """

    def __init__(
        self, values: Tensor, labels: Sequence[int], order: CountedBatches, paths: Sequence[Path]
    ) -> None:
        self.values, self.labels, self.order, self.paths = values, torch.tensor(labels), order, list(paths)
        self.views = len(values) // len(labels)

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for keys in self.order:
            views, positions = torch.tensor(keys).unbind(1)
            values = self.values[views % self.views * len(self.labels) + positions].float()
            inputs = values.permute(0, 3, 1, 2) if values.ndim == 4 else values
            yield inputs, self.labels[positions], positions
