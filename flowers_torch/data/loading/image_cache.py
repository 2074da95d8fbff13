"""The cache of resized images: decoded once, then read from memory or from a file that the system pages."""

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from flowers_torch.files.system import reserve

DISK_FRACTION = 0.5  # of the free disk space that a cache file may take


class CachedImages:
    """Resized images of some indices of a data set, stored when they are first decoded, for all workers.

    Args:
        images: Room for all images of the data set, uint8 (N, 3, height, width), channels last in memory.
        aspects: Width over height of each original image, float32 (N,); 0 marks an image that is missing.
        rows: Indices into these, in the order of the subset.
    """

    def __init__(self, images: Tensor, aspects: Tensor, rows: Sequence[int]) -> None:
        self.images, self.aspects, self.rows = images, aspects, rows

    def subset(self, rows: Sequence[int]) -> "CachedImages":
        """The same memory seen through other indices."""
        return CachedImages(self.images, self.aspects, rows)

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
            used = [array.images for array in self.arrays.values() if array]
            in_memory = sum(images.nbytes for images in used if images.untyped_storage().filename is None)
            room = 0 if self.shared else max(0, self.memory_bytes - in_memory)
            images = allocate((self.count, side, side, 3), torch.uint8, room, self.folder)
            aspects = allocate((self.count,), torch.float32, room, self.folder)
            self.arrays[key] = None
            if images is not None and aspects is not None:
                self.arrays[key] = CachedImages(images.permute(0, 3, 1, 2), aspects.zero_(), range(self.count))
        return self.arrays[key]


def allocate(shape: Sequence[int], dtype: torch.dtype, memory_bytes: int, folder: Path) -> Tensor | None:
    """An uninitialized tensor: in memory up to `memory_bytes`, else in a file that vanishes with the process.

    None where half of the free disk space of the folder is not enough either.
    """
    size = torch.Size(shape)
    needed = size.numel() * dtype.itemsize
    if needed <= memory_bytes:
        return torch.empty(size, dtype=dtype)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if needed > DISK_FRACTION * shutil.disk_usage(folder).free:
            return None
        # The mapping keeps the deleted file alive; nothing is left behind, not even by a kill.
        with tempfile.NamedTemporaryFile(dir=folder, prefix="images.", suffix=".tmp") as file:
            reserve(file, needed)
            return torch.from_file(file.name, shared=True, size=size.numel(), dtype=dtype).view(size)
    except OSError:  # the folder is not writable or the disk is full: images are decoded every time
        return None
