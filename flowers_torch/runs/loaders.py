"""Batches of images for given indices and an augmentation; the owner of the image cache."""

import copy
from collections.abc import Sequence

from flowers_torch.config import Config
from flowers_torch.data.augment.per_image import train_transform
from flowers_torch.data.dataset import ImageDataset
from flowers_torch.data.loading.batches import BATCH_AUGMENTATIONS, TrainingBatches, batch_augmentation
from flowers_torch.data.loading.image_cache import ImageCache
from flowers_torch.data.loading.loaders import TransformedImages, loader_settings, make_loader
from flowers_torch.data.loading.resize import AS_PREDICTED, resized_images, resized_side
from flowers_torch.files.cache import cache_folder
from flowers_torch.log import log
from flowers_torch.models.checkpoint import ModelInfo
from flowers_torch.training.device import Runtime
from flowers_torch.training.distributed import SINGLE_PROCESS, Distributed


class Loaders:
    """Makes batches of a data set's images, each decoded once for all splits and stages."""

    def __init__(
        self, config: Config, dataset: ImageDataset, info: ModelInfo, runtime: Runtime, distributed: Distributed
    ) -> None:
        self.dataset, self.runtime, self.distributed = dataset, runtime, distributed
        self.inputs, self.mirror = info.preprocessing, info.mirror
        self.batch_size, self.seed = config.batch_size, config.seed
        self.settings = loader_settings(config.workers, runtime.device)
        self.cache = ImageCache(len(dataset), config.cache_bytes, cache_folder(), self.settings["workers"] > 0)

    def training(self, indices: Sequence[int], augmentation: str, mixup: float = 0.0) -> TrainingBatches:
        """Augmented batches in random order; each process gets its shard of every batch."""
        return self._batches(indices, augmentation, shuffle=True, mixup=mixup)

    def in_order(self, indices: Sequence[int], augmentation: str = "none", once: bool = False) -> TrainingBatches:
        """Batches in the order of the indices, those of one process; each of several gets every so many of them.

        Images that are shown `once` are not kept in memory.
        """
        return self._batches(indices, augmentation, shuffle=False, once=once)

    def unsharded(self) -> "Loaders":
        """Loaders of this process alone, with the same image cache."""
        loaders = copy.copy(self)
        loaders.distributed = SINGLE_PROCESS
        return loaders

    def images(self, indices: Sequence[int], augmentation: str) -> TransformedImages:
        """The images as the loader's threads or workers read them."""
        paths = [self.dataset.root / self.dataset.paths[index] for index in indices]
        labels, inputs = [self.dataset.labels[index] for index in indices], self.inputs
        if augmentation in BATCH_AUGMENTATIONS:
            return resized_images(paths, labels, self.seed, augmentation, inputs)
        values = (inputs.mean, inputs.std, inputs.interpolation)
        transform = train_transform(augmentation, inputs.size, *values, self.mirror)
        images = TransformedImages(paths, labels, transform, self.seed)
        images.value_range = inputs.value_range
        return images

    def _batches(
        self, indices: Sequence[int], augmentation: str, shuffle: bool, mixup: float = 0.0, once: bool = False
    ) -> TrainingBatches:
        inputs, images, augment = self.inputs, self.images(indices, augmentation), None
        if augmentation in BATCH_AUGMENTATIONS:
            augment = batch_augmentation(augmentation, inputs.size, inputs.crop, self.mirror)
            side = resized_side(augmentation, inputs.size)
            cached = None if once else self.cache.images(side, augmentation in AS_PREDICTED)
            images.cache = cached and cached.subset(indices)
        shard = (self.distributed.rank, self.distributed.size)
        loader, order = make_loader(images, self.batch_size, shuffle, shard=shard, **self.settings)
        arguments = (loader, order, self.seed, len(self.dataset.classes), self.runtime.device)
        return TrainingBatches(*arguments, augment, inputs.mean, inputs.std, mixup, log.info if shuffle else str)
