"""Batches of photos whose every random choice is a function of (seed, epoch, photo), not of a stream.

So the order of an epoch and the augmentation of a photo do not depend on the number of workers, on
prefetching, or on where an interrupted run stopped: resuming only skips batches.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler, default_collate

from flowers_torch.data.images import load_image
from flowers_torch.data.loading.image_cache import ImageCache
from flowers_torch.data.loading.workers import POLL_SECONDS, Heartbeat, WatchedLoader

MAX_EPOCHS = (1 << 20) + 1  # beyond any run: views of repeats start here; odd, see `stored.py`
Key = tuple[int, int]  # (view, position in the data set); the view is the epoch, see CountedBatches


class Item(NamedTuple):
    """A transformed photo; in a batch each field is a tensor (N, ...)."""

    image: Any  # what the transform made of it: an input, or a canvas for `batches.py`
    label: Any  # class index
    position: Any  # in the data set
    view: Any  # of this photo
    aspect: Any  # width over height of the upright photo


class TransformedImages(Dataset[Item]):
    """Photos of one part of a split, transformed. An item is asked for by (view, position).

    Args:
        paths: Files.
        labels: Class index of each file.
        transform: `PIL.Image` to tensor; may draw from torch's global generator.
        seed: Of the draws.
        draws: Whether the transform draws. Photos of one that does not can be read by several threads.
        at_least: Pixels of a photo's shorter side that are enough; 0 for all there are.

    Attributes:
        pulse: Where workers read.
        kept: Room for photos, where the transform makes bytes, and makes them without drawing.
        threads: That read a batch.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        labels: Sequence[int],
        transform: Callable[[Any], Tensor],
        seed: int,
        draws: bool = True,
        at_least: int = 0,
    ) -> None:
        self.paths, self.labels, self.transform, self.seed = list(paths), list(labels), transform, seed
        self.draws, self.at_least = draws, at_least
        self.pulse: Heartbeat | None = None
        self.kept: ImageCache | None = None
        self.threads = 1

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, key: Key) -> Item:
        return self._item(key, self._read(key))

    def __getitems__(self, keys: list[Key]) -> list[Item]:
        """A batch, as torch's loader asks for it. Photos are decoded and resized outside of Python's lock."""
        if self.draws or self.threads == 1:
            return [self[key] for key in keys]
        with ThreadPoolExecutor(self.threads) as pool:
            return [self._item(key, read) for key, read in zip(keys, pool.map(self._read, keys), strict=True)]

    def _read(self, key: Key) -> tuple[Tensor, float]:
        """What the transform makes of a photo, or made of it before, and the photo's aspect."""
        view, position = key
        if self.pulse:
            self.pulse.beat(position)
        if self.kept and (known := self.kept.find(position)):
            return known
        image = load_image(self.paths[position], at_least=self.at_least)
        if not self.draws:
            made = self.transform(image), image.width / image.height
            if self.kept:
                self.kept.keep(position, *made)
            return made
        with torch.random.fork_rng(devices=[]):  # the process's own stream (dropout) goes on undisturbed
            torch.manual_seed(derived_seed(self.seed, view, position))
            return self.transform(image), image.width / image.height

    def _item(self, key: Key, read: tuple[Tensor, float]) -> Item:
        view, position = key
        return Item(read[0], self.labels[position], position, view, read[1])


class EpochBatchSampler(Sampler[list[Key]]):
    """Batches of (view, position) in an order that is a function of (seed, epoch).

    Without weights every photo comes once an epoch and its view is the epoch. With weights photos are drawn
    with replacement, as many as there are, and each repeat within an epoch is another view.

    The last, ragged batch is kept. A last batch of a single photo joins the one before, because batch
    norm cannot train on one value per channel; of several processes each needs two photos.

    Args:
        count: Photos.
        batch_size: Photos of a batch, over all processes.
        seed: Of the order.
        shuffle: For training; else in the order of the data set.
        weights: Of the photos, where they are drawn.
        shard: Number of this process and how many there are: each yields its share of every batch.

    Attributes:
        epoch: To be set before each pass.
        skip: Batches to leave out at the start of the next pass, for resuming.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        seed: int,
        shuffle: bool,
        weights: Tensor | None = None,
        shard: tuple[int, int] = (0, 1),
    ) -> None:
        self.count, self.batch_size, self.seed, self.shuffle = count, batch_size, seed, shuffle
        self.weights, self.shard = weights, shard
        self.epoch = 0
        self.skip = 0

    def _starts(self) -> list[int]:
        starts = list(range(0, self.count, self.batch_size))  # guard: D30 last
        if self.shuffle and len(starts) > 1 and self.count - starts[-1] < 2 * self.shard[1]:
            starts.pop()
        return starts

    def __len__(self) -> int:
        return len(self._starts())

    def __iter__(self) -> Iterator[list[Key]]:
        keys = self._keys()
        starts = self._starts()
        ends = [*starts[1:], self.count]
        for start, end in list(zip(starts, ends, strict=True))[self.skip :]:  # guard: R22
            rank, size = self.shard
            yield keys[start:end][rank::size]

    def _keys(self) -> list[Key]:
        generator = torch.Generator().manual_seed(derived_seed(self.seed, self.epoch, -1))  # guard: T06
        if self.weights is not None:
            repeats: Counter[int] = Counter()
            keys = []
            for position in torch.multinomial(self.weights, self.count, True, generator=generator).tolist():
                keys.append((self.epoch + MAX_EPOCHS * repeats[position], position))
                repeats[position] += 1
            return keys
        order = torch.randperm(self.count, generator=generator) if self.shuffle else torch.arange(self.count)
        return [(self.epoch, position) for position in order.tolist()]


def derived_seed(*counters: int) -> int:
    """A seed below 2**63 from counters; neighbouring counters give unrelated seeds."""
    digest = hashlib.blake2b(repr(counters).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def make_loader(
    dataset: TransformedImages,
    batch_size: int,
    shuffle: bool,
    workers: int = 0,
    pin_memory: bool = False,
    balanced: bool = False,
    shard: tuple[int, int] = (0, 1),
    threads: int = 1,
) -> tuple[WatchedLoader, EpochBatchSampler]:
    """A loader of `Item` batches and the order that steers it; `threads` read where there are no workers."""
    weights = balanced_draw(dataset.labels) if balanced else None
    # In prediction each process has photos of its own instead: its data set holds no others.
    order = EpochBatchSampler(
        len(dataset), batch_size, dataset.seed, shuffle, weights, shard if shuffle else (0, 1)
    )
    dataset.pulse = Heartbeat(workers) if workers else None
    dataset.threads = 1 if workers else threads
    loader = WatchedLoader(
        dataset,
        batch_sampler=order,
        num_workers=workers,
        collate_fn=_collate if not workers else None,
        timeout=POLL_SECONDS if workers else 0,
        pin_memory=pin_memory,
        persistent_workers=workers > 0,
        generator=torch.Generator(),  # else each pass takes a number from the stream that dropout draws from
    )
    return loader, order


def _collate(items: list[Item]) -> Item:
    """A batch; bytes are stacked by NumPy, for the reason that `ImageCache.keep` has."""
    if items[0].image.dtype != torch.uint8:
        batch: Item = default_collate(items)
        return batch
    canvases = np.stack([item.image.permute(1, 2, 0).numpy() for item in items])
    rest = default_collate([item._replace(image=0) for item in items])
    return rest._replace(image=torch.from_numpy(canvases).permute(0, 3, 1, 2))


def balanced_draw(labels: Sequence[int]) -> Tensor:
    """Weight of each photo in a draw that takes every class equally often."""
    counts = Counter(labels)
    return torch.tensor([1 / counts[label] for label in labels], dtype=torch.float64)


def loader_settings(wanted: int, device: torch.device) -> dict[str, Any]:
    """How batches for a device are read here: keywords of `make_loader`; `wanted` as in `choose_workers`."""
    on_cpu = device.type == "cpu"
    return {
        "workers": choose_workers(wanted, on_cpu),
        "threads": torch.get_num_threads() if on_cpu else 1,
        "pin_memory": device.type == "cuda",
    }


def choose_workers(wanted: int, on_cpu: bool) -> int:
    """Worker processes for decoding: as wanted, or chosen for the machine where `wanted` is negative.

    When the CPU itself computes, workers would fight it over the cores; threads decode a batch in between,
    which takes a few percent of a training step there.
    """
    if wanted >= 0:
        return wanted
    if on_cpu:
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 4
    return max(1, min(16, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))  # shared under torchrun
