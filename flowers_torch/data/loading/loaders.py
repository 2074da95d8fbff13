"""Loaders of images whose every random choice is a function of (seed, epoch, image), not of a stream.

The number of workers, prefetching and interruptions therefore change no batch. Resuming only skips batches.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler, default_collate

from flowers_torch.data.images import load_image
from flowers_torch.data.loading.image_cache import CachedImages
from flowers_torch.data.loading.workers import Heartbeat, WatchedLoader
from flowers_torch.data.value_range import Range
from flowers_torch.files.system import processes_here, usable_cores

Key = tuple[int, int]  # (view, position in the data set); the view is the epoch


class Item(NamedTuple):
    """A transformed image; in a batch each field is a tensor (N, ...)."""

    image: Any  # what the transform returns: an input, or a resized image for `batches.py`
    label: Any  # class index
    position: Any  # in the data set
    view: Any  # of this image
    aspect: Any  # width over height of the upright original


class TransformedImages(Dataset[Item]):
    """Images of a subset, transformed. An item is indexed by (view, position).

    Args:
        transform: `PIL.Image` to tensor. It may use torch's global generator.
        random: Whether the transform is random. Several threads may read through one that is not.
        at_least: Pixels of an image's shorter side that are enough; 0 for all there are.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        labels: Sequence[int],
        transform: Callable[[Any], Tensor],
        seed: int,
        random: bool = True,
        at_least: int = 0,
    ) -> None:
        self.paths, self.labels = list(paths), list(labels)
        self.transform, self.seed, self.random, self.at_least = transform, seed, random, at_least
        self.heartbeat: Heartbeat | None = None  # of the workers
        self.cache: CachedImages | None = None  # of a transform that returns bytes and is not random
        self.threads = 1  # that read a batch
        self.value_range: Range = ()  # of images with more than 8 bits

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, key: Key) -> Item:
        image, aspect = self._read(key)
        return Item(image, self.labels[key[1]], key[1], key[0], aspect)

    def __getitems__(self, keys: list[Key]) -> list[Item]:
        """A batch, as torch's loader requests it. Images are decoded and resized outside of Python's lock."""
        if self.random or self.threads == 1:
            return [self[key] for key in keys]
        # A new thread of Python would use all cores for each operation of torch.
        with ThreadPoolExecutor(self.threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(self.__getitem__, keys))

    def _read(self, key: Key) -> tuple[Tensor, float]:
        """A transformed image, decoded now or cached before, and its aspect ratio."""
        view, position = key
        if self.heartbeat:
            self.heartbeat.update(position)
        if self.cache and (cached := self.cache.get(position)):
            return cached
        image = load_image(self.paths[position], at_least=self.at_least, value_range=self.value_range)
        aspect = image.width / image.height
        if self.random:
            with torch.random.fork_rng(devices=[]):  # leaves the process's own stream (dropout) as it is
                # `torch.manual_seed` would also seed the streams of the GPUs.
                torch.default_generator.manual_seed(derived_seed(self.seed, view, position))
                return self.transform(image), aspect
        made = self.transform(image)
        if self.cache:
            self.cache.put(position, made, aspect)
        return made, aspect


class EpochBatchSampler(Sampler[list[Key]]):
    """Batches of (epoch, position) in an order that is a function of (seed, epoch).

    The last, smaller batch is kept. A last batch of one image joins the one before it, because batch norm
    cannot train on one value per channel. With several processes each of them needs two images.

    Args:
        batch_size: Images per batch, over all processes.
        shuffle: True for training; otherwise the order is that of the data set.
        shard: Rank of this process and number of processes. Each yields its shard of every batch, or without
            `shuffle` every so many batches; the last one is repeated until all have equally many.
    """

    def __init__(self, count: int, batch_size: int, seed: int, shuffle: bool, shard: tuple[int, int] = (0, 1)) -> None:
        self.count, self.batch_size, self.seed, self.shuffle = count, batch_size, seed, shuffle
        self.shard = shard
        self.epoch = 0  # set before each pass
        self.skip = 0  # batches to leave out at the start of the next pass, for resuming
        self.starts = list(range(0, self.count, self.batch_size))  # guard: D30 last
        if shuffle and len(self.starts) > 1 and count - self.starts[-1] < 2 * shard[1]:
            self.starts.pop()

    def __len__(self) -> int:
        return len(self._bounds())

    def __iter__(self) -> Iterator[list[Key]]:
        generator = torch.Generator().manual_seed(derived_seed(self.seed, self.epoch, -1))  # guard: T06
        order = torch.randperm(self.count, generator=generator) if self.shuffle else torch.arange(self.count)
        keys = [(self.epoch, position) for position in order.tolist()]
        rank, size = self.shard if self.shuffle else (0, 1)
        for start, end in self._bounds()[self.skip :]:  # guard: R22
            yield keys[start:end][rank::size]

    def _bounds(self) -> list[tuple[int, int]]:
        """First position and end of each batch that this process takes part in."""
        bounds, (rank, size) = list(pairwise([*self.starts, self.count])), self.shard
        if self.shuffle or not bounds:
            return bounds
        return [bounds[min(first + rank, len(bounds) - 1)] for first in range(0, len(bounds), size)]


def derived_seed(*counters: int) -> int:
    """A seed below 2**63 from counters; neighboring counters give unrelated seeds."""
    return int.from_bytes(hashlib.blake2b(repr(counters).encode(), digest_size=8).digest(), "little") >> 1


def make_loader(
    dataset: TransformedImages,
    batch_size: int,
    shuffle: bool,
    workers: int = 0,
    pin_memory: bool = False,
    shard: tuple[int, int] = (0, 1),
    threads: int = 1,
) -> tuple[WatchedLoader, EpochBatchSampler]:
    """A loader of `Item` batches and the sampler that orders them. `threads` read where there are no workers.

    For training each batch is sharded over the processes; for prediction each process gets whole batches.
    """
    order = EpochBatchSampler(len(dataset), batch_size, dataset.seed, shuffle, shard)
    dataset.heartbeat = Heartbeat(workers) if workers else None
    dataset.threads = 1 if workers else threads
    loader = WatchedLoader(
        dataset,
        batch_sampler=order,
        num_workers=workers,
        collate_fn=_collate if not workers else None,
        pin_memory=pin_memory,
        persistent_workers=workers > 0,
        generator=torch.Generator(),  # otherwise each pass takes a number from the stream that dropout uses
    )
    return loader, order


def _collate(items: list[Item]) -> Item:
    """A batch. NumPy stacks bytes, for the reason given in `CachedImages.put`."""
    if items[0].image.dtype != torch.uint8:
        batch: Item = default_collate(items)
        return batch
    images = np.stack([item.image.permute(1, 2, 0).numpy() for item in items])
    rest = default_collate([item._replace(image=0) for item in items])
    return rest._replace(image=torch.from_numpy(images).permute(0, 3, 1, 2))


def loader_settings(workers: int, device: torch.device) -> dict[str, Any]:
    """Keywords of `make_loader` for a device on this machine; `workers` as in `choose_workers`."""
    on_cpu = device.type == "cpu"
    return {
        "workers": choose_workers(workers, on_cpu),
        "threads": torch.get_num_threads() if on_cpu else 1,
        "pin_memory": device.type == "cuda",
    }


def choose_workers(workers: int, on_cpu: bool) -> int:
    """Number of worker processes that decode images; chosen for the machine where `workers` is negative.

    Where the CPU itself trains, workers would compete for its cores. Threads then decode a batch between two
    steps, which takes a few percent of a step.
    """
    if workers >= 0 or on_cpu:
        return max(workers, 0)
    return max(1, min(16, usable_cores() // processes_here()))
