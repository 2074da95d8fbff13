"""The cache of resized images: decoded once, then read from memory or from a file that the system pages."""

import errno
import mmap
import os
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowers_torch.files.system import descriptor_for_worker, reserve, workers_get_files

DISK_FRACTION = 0.5  # of the free disk space that a cache file may take


class MappedFile:
    """A file without a name, mapped into this process and into its workers, however they are started."""

    def __init__(self, descriptor: int, size: int) -> None:
        self.descriptor, self.size = descriptor, size
        self.content = torch.frombuffer(mmap.mmap(descriptor, size), dtype=torch.uint8)
        weakref.finalize(self, os.close, descriptor)

    @classmethod
    def new(cls, size: int, folder: Path) -> "MappedFile":
        """A file of zeros that vanishes with the process, even by a kill.

        Raises:
            OSError: the folder cannot be written, or the file would take more than half of the free disk space.
        """
        folder.mkdir(parents=True, exist_ok=True)
        if size > DISK_FRACTION * shutil.disk_usage(folder).free:
            raise OSError(errno.ENOSPC, "not enough space for a cache")
        with tempfile.TemporaryFile(dir=folder, prefix="images.") as file:
            reserve(file, size)
            return cls(os.dup(file.fileno()), size)

    def __reduce__(self) -> Any:
        return _receive, (descriptor_for_worker(self.descriptor), self.size)


def _receive(descriptor: Any, size: int) -> MappedFile:
    return MappedFile(descriptor.detach(), size)


class CachedImages:
    """Resized images of some indices of a data set, stored when they are first decoded, for all workers.

    Args:
        images: Room for all images of the data set, uint8 (N, 3, height, width), channels last in memory.
        aspects: Width over height of each original image, float32 (N,); 0 marks an image that is missing.
        rows: Indices into these, in the order of the subset.
        file: Which holds images and aspects; None for this process's memory.
    """

    def __init__(self, images: Tensor, aspects: Tensor, rows: Sequence[int], file: MappedFile | None = None) -> None:
        self.images, self.aspects, self.rows, self.file = images, aspects, rows, file

    @classmethod
    def in_file(cls, file: MappedFile, shape: Sequence[int], rows: Sequence[int]) -> "CachedImages":
        """In a file of aspects and images; `shape` is (N, height, width, 3)."""
        border = shape[0] * torch.float32.itemsize
        aspects, images = file.content[:border].view(torch.float32), file.content[border:].view(*shape)
        return cls(images.permute(0, 3, 1, 2), aspects, rows, file)

    def __reduce__(self) -> Any:
        if self.file is None:
            return CachedImages, (self.images, self.aspects, self.rows)
        return CachedImages.in_file, (self.file, tuple(self.images.permute(0, 2, 3, 1).shape), self.rows)

    def subset(self, rows: Sequence[int]) -> "CachedImages":
        """The same memory seen through other indices."""
        return CachedImages(self.images, self.aspects, rows, self.file)

    def is_complete(self) -> bool:
        """Whether every image of the subset has been decoded."""
        return bool(self.aspects[torch.tensor(self.rows)].all())

    def nbytes(self) -> int:
        """Bytes of the subset's images."""
        return len(self.rows) * self.images[0].nbytes

    def get(self, position: int) -> tuple[Tensor, float] | None:
        """An image (3, height, width) and its aspect ratio, or None if it has not been decoded."""
        row = self.rows[position]
        aspect = float(self.aspects[row])
        return (self.images[row], aspect) if aspect else None

    def put(self, position: int, image: Tensor, aspect: float) -> None:
        """Stores an image."""
        row = self.rows[position]
        # NumPy copies here: torch would hand the copy to threads that then spin while images are decoded.
        self.images.numpy()[row] = image.numpy()
        self.aspects[row] = aspect  # last: a process that sees it may read the image


class ImageCache:
    """Resized images of a data set, one array for each kind of resizing, within one memory budget.

    Args:
        memory_bytes: Memory for all arrays together. A file takes an array that does not fit.
        folder: Folder of those files.
        shared: Whether worker processes fill the cache. They see a mapped file but not this process's memory.
    """

    def __init__(self, count: int, memory_bytes: int, folder: Path, shared: bool) -> None:
        self.count, self.memory_bytes, self.folder, self.shared = count, memory_bytes, folder, shared
        self.arrays: dict[tuple[bool, int], CachedImages | None] = {}

    def images(self, side: int, as_predicted: bool) -> CachedImages | None:
        """The array for square images of a side in pixels, or None where neither memory nor disk has room.

        `as_predicted` images are cropped as for prediction; others show the whole photo.
        """
        key = as_predicted, side
        if key not in self.arrays:
            self.arrays[key] = self._allocate(side)
        return self.arrays[key]

    def _allocate(self, side: int) -> CachedImages | None:
        shape, rows = (self.count, side, side, 3), range(self.count)
        needed = torch.Size(shape).numel()
        in_memory = sum(array.images.nbytes for array in self.arrays.values() if array and not array.file)
        if not self.shared and needed <= self.memory_bytes - in_memory:
            images = torch.empty(shape, dtype=torch.uint8)
            return CachedImages(images.permute(0, 3, 1, 2), torch.zeros(self.count), rows)
        if self.shared and not workers_get_files():
            return None
        try:
            file = MappedFile.new(needed + self.count * torch.float32.itemsize, self.folder)
        except OSError:  # the folder is not writable or the disk is full: images are decoded every time
            return None
        return CachedImages.in_file(file, shape, rows)
