"""Training batches: photos are decoded one by one and augmented together, on the device that trains.

A worker reads a photo and shrinks it to a square canvas of bytes. All that is random then happens to the
batch as tensors, by the named policies of `augment.py`; what torchvision has for single photos only (`rand`,
`trivial`) stays there. Mixup and cutmix come last. Every draw is a function of (seed, view, photo) or of
(seed, epoch, batch), so workers and interruptions change nothing.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from flowers_torch.data.augment import per_batch as batch_augment
from flowers_torch.data.augment.per_batch import SampleGenerator
from flowers_torch.data.augment.per_image import COLOUR, CROPS, KERAS, MAX_ASPECT
from flowers_torch.data.loading.gpu_cache import GPUImages, cache_bytes_on, copied
from flowers_torch.data.loading.image_cache import ImageCache
from flowers_torch.data.loading.loaders import EpochBatchSampler, derived_seed
from flowers_torch.data.loading.resize import RESIZE_FACTORS

BATCH_AUGMENTATIONS = tuple(RESIZE_FACTORS)
CPU_PHOTOS = 8  # augmented, or seen by a frozen network, at a time on a CPU

BatchAugmentation = Callable[
    [Tensor, SampleGenerator, Tensor], Tensor
]  # (canvases in 0..1, draws, aspects) -> inputs


def batch_augmentation(policy: str, size: int, crop: float = 0.875) -> BatchAugmentation:
    """A policy of `augment.py` as a function of a batch; its result is still in 0..1.

    `mirror` is here only: photos as prediction sees them, mirrored in every second view.

    Args:
        policy: One of `BATCH_AUGMENTATIONS`.
        size: Side of the results.
        crop: Share of the shorter side that `alexnet` keeps, as in `augment.train_transform`.
    """
    if policy not in RESIZE_FACTORS:
        raise ValueError(f"no policy {policy!r} for batches; there are {', '.join(BATCH_AUGMENTATIONS)}")
    return functools.partial(_augment, policy, size, crop)


def _augment(
    policy: str, size: int, crop: float, images: Tensor, draws: SampleGenerator, aspects: Tensor
) -> Tensor:
    if policy == "none":
        return images
    if policy == "mirror":
        return torch.where(draws.views.reshape(-1, 1, 1, 1) % 2 == 1, images.flip(3), images)
    if policy == "alexnet":
        share = size / math.floor(size / crop)
        images = batch_augment.random_crop(images, size, draws, share, aspects)
        images = batch_augment.shift_rgb(batch_augment.mirror(images, draws), draws)
        return batch_augment.shift_pca_colour(images, draws)
    if policy in KERAS:
        if images.shape[-2:] != (size, size):
            images = F.interpolate(images, (size, size), mode="bilinear", antialias=True)
        matrices = batch_augment.draw_affines(draws, size, size, *KERAS[policy])
        return batch_augment.mirror(batch_augment.affine(images, matrices), draws)
    scale, ratio = CROPS[policy]
    images = batch_augment.resized_crop(images, size, draws, scale, ratio, aspects)
    images = batch_augment.mirror(images, draws)
    return batch_augment.jitter_colour(images, draws, *COLOUR) if policy == "crop" else images


class TrainingBatches:
    """What a training step takes: `(inputs (N, 3, size, size), targets, positions (N,))` for each batch.

    Targets are class indices (N,), or shares of the classes (N, classes) where photos are mixed.

    Args:
        loader: From `make_loader`.
        order: The order that steers it.
        seed: Of the draws.
        classes: How many there are.
        device: That trains, and augments.
        policy: For canvases; None where the data set's own transform makes inputs already.
        mean: Of the channels, for canvases.
        std: Of the channels, for canvases.
        mixup: Blends pairs of photos, by shares from Beta(mixup, mixup); 0 for never.
        cutmix: Pastes rectangles, of areas from Beta(cutmix, cutmix); 0 for never. With both, each batch
            gets one or the other.
        say: Told in one line where the photos are, once that is decided, where there is a choice.
    """

    def __init__(
        self,
        loader: DataLoader[Any],
        order: EpochBatchSampler,
        seed: int,
        classes: int,
        device: torch.device | str = "cpu",
        policy: BatchAugmentation | None = None,
        mean: tuple[float, ...] = (0.0, 0.0, 0.0),
        std: tuple[float, ...] = (1.0, 1.0, 1.0),
        mixup: float = 0.0,
        cutmix: float = 0.0,
        say: Callable[[str], Any] = str,
    ) -> None:
        self.loader, self.order, self.seed, self.classes = loader, order, seed, classes
        self.device, self.policy, self.mean, self.std = device, policy, mean, std
        self.mixup, self.cutmix, self.say = mixup, cutmix, say
        self.resident: GPUImages | None = None
        self.decided = False  # whether the photos stay on the device
        dataset: Any = loader.dataset
        self.paths, self.labels = dataset.paths, dataset.labels  # of the photos, by position

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        self._decide()
        items = self.resident.batches(self.order) if self.resident else copied(self.loader, self.device)
        for number, item in enumerate(items, start=self.order.skip):
            images, labels, positions, views, aspects = item
            if self.policy is not None:
                images = self._augment(self.policy, images, positions, views, aspects)
            if self.mixup or self.cutmix:
                draws = SampleGenerator(derived_seed(self.seed, number), views, positions)
                images, labels = self._mix(images, labels, draws, number)
            yield images, labels, positions

    def _decide(self) -> None:
        """Puts all photos on the device once they are decoded, if they fit beside what training needs."""
        kept: ImageCache | None = self.loader.dataset.kept  # type: ignore[attr-defined]
        room = cache_bytes_on(self.device)
        if self.decided or not room or not kept or not kept.is_complete():
            return
        self.decided, size = True, kept.nbytes()
        if size <= room:
            with contextlib.suppress(torch.OutOfMemoryError):
                self.resident = GPUImages(kept, self.labels, self.device)
        where = f"stay on {self.device}" if self.resident else f"are copied to {self.device} batch by batch"
        compared = f"{size / 2**20:,.0f} MiB of at most {room / 2**20:,.0f}"
        self.say(f"photos   {len(self.labels)} {where}: {compared}, which is half of what is free")

    def _augment(
        self, policy: BatchAugmentation, canvases: Tensor, positions: Tensor, views: Tensor, aspects: Tensor
    ) -> Tensor:
        """Inputs from canvases; on a CPU a few at a time, because its caches hold these."""
        parts = [slice(0, len(canvases))]
        if canvases.device.type == "cpu":
            parts = [slice(start, start + CPU_PHOTOS) for start in range(0, len(canvases), CPU_PHOTOS)]
        aspects = aspects.clamp(1 / MAX_ASPECT, MAX_ASPECT)
        made = []
        for part in parts:
            draws = SampleGenerator(self.seed, views[part], positions[part])
            images = policy(canvases[part].float().div_(255), draws, aspects[part])
            made.append(batch_augment.standardize(images, self.mean, self.std))
        return torch.cat(made)

    def _mix(
        self, images: Tensor, labels: Tensor, draws: SampleGenerator, number: int
    ) -> tuple[Tensor, Tensor]:
        counters = (self.seed, self.order.epoch, number)
        targets = F.one_hot(labels, self.classes).float()
        heads = derived_seed(*counters) % 2 == 0  # a tossed coin
        if self.mixup and (heads or not self.cutmix):
            return batch_augment.mixup(images, targets, batch_augment.draw_fraction(self.mixup, *counters))
        return batch_augment.cutmix(
            images, targets, batch_augment.draw_fraction(self.cutmix, *counters), draws
        )
