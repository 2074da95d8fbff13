"""Room for what is computed once: in memory, or in a file that the system pages in and out."""

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

DISK_SHARE = 0.5  # of the free space, which a store may take at most


class ImageCache:
    """Photos as bytes, kept from their first decoding on. Forked workers share them.

    Args:
        images: Room for all, uint8 (N, 3, height, width), in memory with the channels last.
        aspects: Width over height of each photo as it was, float32 (N,); 0 where it is not here yet.
        rows: Of the photos of a part among these, in its order.
    """

    def __init__(self, images: Tensor, aspects: Tensor, rows: Sequence[int]) -> None:
        self.images, self.aspects, self.rows = images, aspects, rows

    def part(self, rows: Sequence[int]) -> "ImageCache":
        """The same room for some of the photos, which a part counts from 0."""
        return ImageCache(self.images, self.aspects, rows)

    def is_complete(self) -> bool:
        """Whether every photo of the part was decoded."""
        return bool(self.aspects[torch.tensor(self.rows)].all())

    def nbytes(self) -> int:
        """Of the part's photos."""
        return len(self.rows) * self.images[0].nbytes

    def find(self, position: int) -> tuple[Tensor, float] | None:
        """A photo and its aspect, where it was decoded before."""
        row = self.rows[position]
        aspect = float(self.aspects[row])
        return (self.images[row], aspect) if aspect else None

    def keep(self, position: int, image: Tensor, aspect: float) -> None:
        """Keeps a photo."""
        row = self.rows[position]
        # By NumPy: torch would share out the copy to threads that then spin where photos are being decoded.
        self.images.numpy()[row] = image.numpy()
        self.aspects[row] = aspect  # last: another process that sees it may read the image


def make_image_cache(
    count: int, side: int, memory_bytes: int, folder: Path, shared: bool
) -> ImageCache | None:
    """Room for square photos; None where there is none.

    Args:
        count: Of the photos.
        side: In pixels.
        memory_bytes: What they may take of the memory.
        folder: For the file beyond that.
        shared: With worker processes, which see a mapped file but not this process's memory.
    """
    shape = (count, side, side, 3)
    memory = 0 if shared else memory_bytes
    images = allocate(shape, torch.uint8, memory, folder)
    aspects = allocate((count,), torch.float32, memory, folder)
    if images is None or aspects is None:
        return None
    return ImageCache(images.permute(0, 3, 1, 2), aspects.zero_(), range(count))


def allocate(shape: Sequence[int], dtype: torch.dtype, memory_bytes: int, folder: Path) -> Tensor | None:
    """An uninitialised tensor in memory where it fits, else in a file that vanishes with the process.

    Args:
        shape: Of the tensor.
        dtype: Of the tensor.
        memory_bytes: What it may take of the memory.
        folder: For the file.

    Returns:
        None where neither memory nor half of the free disk is enough.
    """
    size = torch.Size(shape)
    needed = size.numel() * dtype.itemsize
    if needed <= memory_bytes:
        return torch.empty(size, dtype=dtype)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if needed > DISK_SHARE * shutil.disk_usage(folder).free:
            return None
        descriptor, name = tempfile.mkstemp(dir=folder, prefix="store.", suffix=".tmp")
    except OSError:  # a cache folder that cannot be written: then everything is computed anew each time
        return None
    try:
        if hasattr(os, "posix_fallocate"):  # a disk that fills up under a mapped file kills the process
            os.posix_fallocate(descriptor, 0, needed)
        return torch.from_file(name, shared=True, size=size.numel(), dtype=dtype).view(size)
    except OSError:  # the disk is full
        return None
    finally:
        os.close(descriptor)
        os.unlink(name)  # the mapping keeps it alive; nothing is left behind, not even by a kill
