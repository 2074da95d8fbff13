"""Batches of what was computed once and stored, in the order and with the views of training."""

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from flowers_torch.data.loaders import CountedBatches

DISK_SHARE = 0.5  # of the free space, which a store may take at most


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


def allocate(shape: Sequence[int], dtype: torch.dtype, memory_bytes: int, folder: Path) -> Tensor | None:
    """Room for a store: in memory where it fits, else in a file that vanishes with the process.

    Args:
        shape: Of the store.
        dtype: Of the store.
        memory_bytes: What it may take of the memory.
        folder: For the file.

    Returns:
        None where neither memory nor half of the free disk is enough.
    """
    size = torch.Size(shape)
    needed = size.numel() * dtype.itemsize
    if needed <= memory_bytes:
        return torch.empty(size, dtype=dtype)
    folder.mkdir(parents=True, exist_ok=True)
    if needed > DISK_SHARE * shutil.disk_usage(folder).free:
        return None
    descriptor, name = tempfile.mkstemp(dir=folder, prefix="store.", suffix=".tmp")
    os.close(descriptor)
    store = torch.from_file(name, shared=True, size=size.numel(), dtype=dtype).view(size)
    os.unlink(name)  # the mapping keeps it alive; nothing is left behind, not even by a kill
    return store
