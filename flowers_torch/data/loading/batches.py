"""Training batches: images are decoded one by one and augmented together, on the device that trains.

Loading resizes an image to a square of bytes. All random changes are then applied to the batch as tensors.
Mixup comes last. Every random number is a function of (seed, view, image) or of (seed, epoch, batch).
"""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from flowers_torch.data.augment import per_batch as batch_augment
from flowers_torch.data.augment.names import BATCH_AUGMENTATIONS, COLOR, CROPS, KERAS
from flowers_torch.data.augment.per_batch import SampleGenerator
from flowers_torch.data.augment.per_image import MAX_ASPECT
from flowers_torch.data.loading.gpu_cache import GPUImages, cache_bytes_on, copied
from flowers_torch.data.loading.image_cache import CachedImages
from flowers_torch.data.loading.loaders import EpochBatchSampler, Item
from flowers_torch.data.loading.resize import RESIZE_FACTORS
from flowers_torch.errors import lacks_memory

CPU_IMAGES = 8  # augmented at a time on a CPU, whose caches hold these

# (resized images in 0..1, random generator, aspects) -> inputs in 0..1
BatchAugmentation = Callable[[Tensor, SampleGenerator, Tensor], Tensor]


def batch_augmentation(augmentation: str, size: int, crop: float = 0.875, mirror: bool = True) -> BatchAugmentation:
    """One of `BATCH_AUGMENTATIONS` as a function of a batch, with results of `size` x `size` pixels in 0..1.

    `mirror` is images as prediction sees them, mirrored in every second view. `crop` is the fraction of the
    shorter side that `alexnet` keeps. Without `mirror` no image is mirrored.
    """
    if augmentation not in RESIZE_FACTORS:
        names = ", ".join(BATCH_AUGMENTATIONS)
        raise ValueError(f"{augmentation!r} is not a valid batch augmentation: expected one of {names}")
    if augmentation == "mirror" and not mirror:
        augmentation = "none"
    return functools.partial(_augment, augmentation, size, crop, 0.5 if mirror else 0.0)  # guard: D40 batch


# The first four arguments are what `batch_augmentation` binds.
def _augment(
    augmentation: str,
    size: int,
    crop: float,
    mirrored: float,
    images: Tensor,
    random: SampleGenerator,
    aspects: Tensor,
) -> Tensor:
    if augmentation == "none":
        return images
    if augmentation == "mirror":
        return torch.where(random.views.reshape(-1, 1, 1, 1) % 2 == 1, images.flip(3), images)
    if augmentation == "alexnet":
        fraction = size / math.floor(size / crop)
        images = batch_augment.random_crop(images, size, random, fraction, aspects)
        images = batch_augment.shift_rgb(batch_augment.mirror(images, random, mirrored), random)
        return batch_augment.shift_pca_color(images, random)
    if augmentation in KERAS:
        if images.shape[-2:] != (size, size):
            images = F.interpolate(images, (size, size), mode="bilinear", antialias=True)
        matrices = batch_augment.draw_affines(random, size, size, *KERAS[augmentation])
        return batch_augment.mirror(batch_augment.affine(images, matrices), random, mirrored)
    images = batch_augment.resized_crop(images, size, random, *CROPS[augmentation], aspects)
    images = batch_augment.mirror(images, random, mirrored)
    return batch_augment.jitter_color(images, random, COLOR) if augmentation == "crop" else images


class TrainingBatches:
    """What a training step takes: `(inputs (N, 3, size, size), targets, positions (N,))` for each batch.

    Targets are class indices (N,), or class probabilities (N, classes) where images are mixed.

    Args:
        loader: From `make_loader`, with its sampler as `order`.
        augment: Applied to resized images, with `mean` and `std`. None where the transform returns inputs.
        mixup: Blends pairs of images by weights from Beta(mixup, mixup); 0 turns it off.
        say: Receives one line about where the images are cached, once there is a choice.
    """

    def __init__(
        self,
        loader: DataLoader[Any],
        order: EpochBatchSampler,
        seed: int,
        classes: int,
        device: torch.device | str = "cpu",
        augment: BatchAugmentation | None = None,
        mean: tuple[float, ...] = (0.0, 0.0, 0.0),
        std: tuple[float, ...] = (1.0, 1.0, 1.0),
        mixup: float = 0.0,
        say: Callable[[str], Any] = str,
    ) -> None:
        self.loader, self.order, self.seed, self.classes = loader, order, seed, classes
        self.device, self.augment, self.mean, self.std = device, augment, mean, std
        self.mixup, self.say = mixup, say
        self.on_gpu: GPUImages | None = None
        self.decided = False  # whether the images stay on the device
        dataset: Any = loader.dataset
        self.paths, self.labels = dataset.paths, dataset.labels  # of the images, by position

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        self._decide_cache()
        items = self.on_gpu.batches(self.order) if self.on_gpu else copied(self.loader, self.device)
        for number, item in enumerate(items, start=self.order.skip):
            images = self._augmented(self.augment, item) if self.augment else item.image
            labels = item.label
            if self.mixup:
                fraction = batch_augment.draw_fraction(self.mixup, self.seed, self.order.epoch, number)
                images, labels = batch_augment.mixup(images, F.one_hot(labels, self.classes).float(), fraction)
            yield images, labels, item.position

    def _decide_cache(self) -> None:
        """Caches all images on the GPU once they are decoded, if they fit beside what training needs."""
        cached: CachedImages | None = self.loader.dataset.cache  # type: ignore[attr-defined]
        room = cache_bytes_on(self.device)
        if self.decided or not room or not cached or not cached.is_complete():
            return
        self.decided, size = True, cached.nbytes()
        if size <= room:
            try:
                self.on_gpu = GPUImages(cached, self.labels, self.device)
            except RuntimeError as error:
                if not lacks_memory(error):
                    raise
        where = f"stay on {self.device}" if self.on_gpu else f"are copied to {self.device} batch by batch"
        compared = f"{size / 2**20:,.0f} MiB of {room / 2**20:,.0f} MiB allowed"
        self.say(f"photos   {len(self.labels)} {where}: {compared}, half of the free GPU memory")

    def _augmented(self, augment: BatchAugmentation, item: Item) -> Tensor:
        """Inputs from resized images; a few at a time on a CPU."""
        step = CPU_IMAGES if item.image.device.type == "cpu" else len(item.image)
        made = []
        for start in range(0, len(item.image), step):
            resized, _, positions, views, aspects = (values[start : start + step] for values in item)
            random = SampleGenerator(self.seed, views, positions)
            images = augment(resized.float().div_(255), random, aspects.clamp(1 / MAX_ASPECT, MAX_ASPECT))
            made.append(batch_augment.standardize(images, self.mean, self.std))
        return torch.cat(made)
