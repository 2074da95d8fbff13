"""Images and features on the GPU: all of a split where they fit, else copied batch by batch.

Nothing here waits for the GPU. Everything also runs on a CPU, so that tests need no GPU.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowers_torch.data.loading.image_cache import CachedImages
from flowers_torch.data.loading.loaders import EpochBatchSampler, Item

DEVICE_FRACTION = 0.5  # of a GPU's free memory that images or features may take
UPLOAD_IMAGES = 256  # at a time


def cache_bytes_on(device: torch.device | str) -> int:
    """Bytes that data may occupy on a device; 0 on a CPU, which reads from the image cache anyway."""
    if torch.device(device).type != "cuda":
        return 0
    free, _ = torch.cuda.mem_get_info(device)
    return int(DEVICE_FRACTION * free)


def to_device(values: Tensor, device: torch.device | str) -> Tensor:
    """Copies values to a device; a copy to a GPU of CUDA from pinned memory does not wait.

    MPS may read the memory of a copy that does not wait after it was freed (torch issues 139550 and 189690).
    """
    return values.to(device, non_blocking=torch.device(device).type == "cuda")


def move(values: Tensor, device: torch.device | str) -> Tensor:
    """`to_device` of values that are not pinned yet, so that it does not wait for a GPU of CUDA."""
    if torch.device(device).type == "cuda" and not values.is_cuda:
        values = values.pin_memory()
    return to_device(values, device)


class GPUImages:
    """The images of a split, all of them decoded, on a device; batches are indexed there.

    Raises:
        torch.OutOfMemoryError: the images do not fit.
    """

    def __init__(self, cached: CachedImages, labels: Sequence[int], device: torch.device | str) -> None:
        rows = torch.tensor(cached.rows)
        self.images = torch.empty((len(rows), *cached.images.shape[1:]), dtype=cached.images.dtype, device=device)
        for start in range(0, len(rows), UPLOAD_IMAGES):
            chunk = slice(start, start + UPLOAD_IMAGES)
            self.images[chunk].copy_(cached.images[rows[chunk]])
        self.aspects = cached.aspects[rows].double().to(device)
        self.labels = torch.tensor(labels).to(device)

    def batches(self, order: EpochBatchSampler) -> Iterator[Item]:
        """The batches that a loader in this order yields, on the device."""
        for keys in order:
            views, positions = move(torch.tensor(keys).T.contiguous(), self.images.device)
            images, labels, aspects = (of[positions] for of in (self.images, self.labels, self.aspects))
            yield Item(images, labels, positions, views, aspects)


def copied(batches: Iterable[Any], device: torch.device | str) -> Iterator[Item]:
    """Batches of `Item`s where they are augmented: on a GPU of CUDA, for which they must be in pinned memory, or here.

    The host does not wait for the GPU, and runs as far ahead of it as it can. Inputs for MPS are augmented here: it
    lacks the float64 of aspect ratios and, before torch 2.13, crops that leave an image (torch issue 125098).
    """
    on_gpu = torch.device(device).type == "cuda"
    for batch in batches:
        yield Item(*(to_device(values, device) for values in batch)) if on_gpu else Item(*batch)


class CachedFeatureBatches:
    """What a training step takes: `(features (N, D), labels (N,), positions (N,))` for each batch.

    Args:
        features: Of each view of each image, (views * images, D).
        order: Order of the batches. A view is taken modulo the number of cached views.
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
