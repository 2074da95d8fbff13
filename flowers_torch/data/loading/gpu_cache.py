"""Photos on the GPU that trains: a whole part of them where it fits, else batch by batch.

Nothing here waits for the GPU. All of it works on any device, so that it can be tested on a CPU.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from flowers_torch.data.loading.image_cache import ImageCache
from flowers_torch.data.loading.loaders import EpochBatchSampler, Item

DEVICE_SHARE = 0.5  # of a GPU's free memory, which photos or features may take at most
UPLOAD_PHOTOS = 256  # at a time


def cache_bytes_on(device: torch.device | str) -> int:
    """Bytes that data may take on a device for good; none on a CPU, to which everything is at hand anyway."""
    if torch.device(device).type != "cuda":
        return 0
    free, _ = torch.cuda.mem_get_info(device)
    return int(DEVICE_SHARE * free)


def move(values: Tensor, device: torch.device | str) -> Tensor:
    """The values on a device, without waiting for it, which a copy from memory that is not pinned does."""
    if torch.device(device).type == "cuda" and not values.is_cuda:
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


class GPUImages:
    """The photos of a part on a device; batches are picked there.

    Args:
        kept: All of them, decoded.
        labels: Class index of each.
        device: Where they go.

    Raises:
        torch.OutOfMemoryError: they do not fit.
    """

    def __init__(self, kept: ImageCache, labels: Sequence[int], device: torch.device | str) -> None:
        rows = torch.tensor(kept.rows)
        self.images = torch.empty((len(rows), *kept.images.shape[1:]), dtype=kept.images.dtype, device=device)
        for start in range(0, len(rows), UPLOAD_PHOTOS):
            some = slice(start, start + UPLOAD_PHOTOS)
            self.images[some].copy_(kept.images[rows[some]])
        self.aspects = kept.aspects[rows].double().to(device)
        self.labels = torch.tensor(labels).to(device)

    def batches(self, order: EpochBatchSampler) -> Iterator[Item]:
        """What a loader under this order gives, on the device."""
        for keys in order:
            views, positions = move(torch.tensor(keys).T.contiguous(), self.images.device)
            images, labels, aspects = (of[positions] for of in (self.images, self.labels, self.aspects))
            yield Item(images, labels, positions, views, aspects)


def copied(batches: Iterable[Any], device: torch.device | str) -> Iterator[Item]:
    """Batches on a device. On a GPU a stream of its own copies them while the steps before are computed.

    The host is ahead of the GPU by as much as it can, so there is no need to ask for batches beforehand.

    Args:
        batches: `Item`s; for a GPU in pinned memory.
        device: Where they go.
    """
    if torch.device(device).type != "cuda":
        for batch in batches:
            yield Item(*(values.to(device, non_blocking=True) for values in batch))
        return
    beside = torch.cuda.Stream(device)
    for batch in batches:
        with torch.cuda.stream(beside):
            item = Item(*(values.to(device, non_blocking=True) for values in batch))
        computing = torch.cuda.current_stream(device)
        computing.wait_stream(beside)
        for values in item:
            values.record_stream(computing)  # else its memory could be used anew before the step is done
        yield item
