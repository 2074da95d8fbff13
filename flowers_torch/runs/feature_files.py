"""Features of images in files, found by the hash of an image's bytes. A large set is in several shards.

Reading and adding need the memory of one shard beside what is asked for.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from flowers_torch.errors import FlowersError, ResourceError
from flowers_torch.files.cache import prune
from flowers_torch.files.reading import check, reading
from flowers_torch.files.tensors import safe_load, safe_save
from flowers_torch.log import log

SHARD_BYTES = 16 * 2**20  # of features in a file
FULL = 7 / 8  # of a shard, from which on it is not written again
MAX_FILES_BYTES = 2 * 2**30  # of all files together
MAX_AGE_SECONDS = 90 * 24 * 3600  # since a file was last used


class FeatureFiles:
    """The files of one kind of features (N, width), such as those of a view under a backbone.

    Args:
        key: What their names begin with.
    """

    def __init__(self, folder: Path, key: str, width: int) -> None:
        self.folder, self.key, self.width = folder, key, width
        self.rows = rows_of_shard(width)

    def shards(self) -> Iterator[tuple[list[str], Tensor]]:
        """Image hashes and features of each shard in turn."""
        for path in self._paths():
            yield self._read(path)

    def add(self, hashes: Sequence[str], features: Tensor) -> None:
        """Appends rows to the last shard and to new ones. A full disk is a note in the log."""
        try:
            while hashes:
                path, known, there = self._with_room()
                room = self.rows - len(known)
                joined = torch.cat([there, features[:room]])
                safe_save({"features": joined}, path, {"images": [*known, *hashes[:room]]})
                hashes, features = hashes[room:], features[room:]
            prune(self.folder, MAX_AGE_SECONDS, MAX_FILES_BYTES)
        except (ResourceError, OSError) as error:  # the cache saves time; it never ends a run
            log.info(f"note     features are not cached on disk: {error}")

    def _with_room(self) -> tuple[Path, list[str], Tensor]:
        """The last shard with its content, where it has room; else the path of a new one."""
        paths = self._paths()
        if paths and paths[-1].stat().st_size < FULL * 4 * self.rows * self.width:
            return paths[-1], *self._read(paths[-1])
        number = int(paths[-1].name.split(".")[1]) + 1 if paths else 0
        return self.folder / f"{self.key}.{number:04}.safetensors", [], torch.empty(0, self.width)

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob(f"{self.key}.[0-9][0-9][0-9][0-9].safetensors"))

    def _read(self, path: Path) -> tuple[list[str], Tensor]:
        """The content of a shard; empty if it is damaged."""
        try:
            tensors, metadata = safe_load(path)
            with reading(path, "a file of features"):
                known, features = check(metadata, {"images": [str]})["images"], tensors["features"]
                fits = features.shape == (len(known), self.width) and features.dtype == torch.float32
                if not (fits and bool(features.isfinite().all())):  # guard: S10 features
                    return [], torch.empty(0, self.width)
        except FlowersError:
            return [], torch.empty(0, self.width)
        with contextlib.suppress(OSError):
            os.utime(path)  # pruning goes by the last use
        return known, features


def rows_of_shard(width: int) -> int:
    """Number of images whose features of some width fill a shard."""
    return max(1, SHARD_BYTES // (4 * width))
