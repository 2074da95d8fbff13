"""MNIST and sets of its form, such as Fashion-MNIST: four files of gray images and labels, maybe gzipped."""

import gzip
import hashlib
import math
from pathlib import Path

import numpy as np

from flowers_torch.data.dataset import ImageDataset
from flowers_torch.data.sources.arrays import read_arrays
from flowers_torch.errors import DataError, ResourceError, printable
from flowers_torch.files.cache import cache_folder
from flowers_torch.files.download import file_digest
from flowers_torch.files.reading import reading, require_regular

STEMS = {"train": "train", "test": "t10k"}
KINDS = {"images": 3, "labels": 1}  # dimensions of the array
MAX_BYTES = 1 << 30  # of an array


def find_mnist(folder: Path) -> dict[str, tuple[Path, Path]]:
    """The files of images and labels of train and test in a folder; empty unless there are all four."""
    found = {}
    for split, stem in STEMS.items():
        images, labels = (_find(folder, f"{stem}-{kind}", f"idx{count}-ubyte") for kind, count in KINDS.items())
        if images and labels:
            found[split] = (images, labels)
    return found if len(found) == len(STEMS) else {}


def _find(folder: Path, stem: str, end: str) -> Path | None:
    """Kaggle writes a dot before the end, others a hyphen."""
    names = (f"{stem}{mark}{end}{packed}" for mark in "-." for packed in ("", ".gz"))
    return next((folder / name for name in names if (folder / name).is_file()), None)


def read_mnist(files: dict[str, tuple[Path, Path]], name: str, cache: Path | None = None) -> ImageDataset:
    """The images of `find_mnist` as PNG files in the cache, with the classes 0, 1, 2, ...

    Raises:
        DataError: a file is damaged, or images and labels do not fit.
    """
    paths = [path for pair in files.values() for path in pair]
    with reading(paths[0], "a readable file of MNIST"):
        digests = [file_digest(path) for path in paths]
    digest = hashlib.sha256("".join(digests).encode()).hexdigest()[:12]
    folder = (cache or cache_folder()) / f"{name[:64]}-{digest}"
    return read_arrays(folder, name, lambda: {s: (read_idx(x), read_idx(y)) for s, (x, y) in files.items()})


def read_idx(path: Path) -> np.ndarray:
    """The array of unsigned bytes in an IDX file."""
    with reading(path, "a valid IDX file", fix="download it again"):
        require_regular(path)
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            zeros, kind, dimensions = file.read(2), *file.read(2)
            if zeros != b"\0\0" or kind != 8 or not 1 <= dimensions <= 4:
                raise ValueError("it does not begin as one of bytes")
            shape = np.frombuffer(file.read(4 * dimensions), dtype=">u4").tolist()
            size = math.prod(shape)
            if size > MAX_BYTES:
                raise ValueError(f"it claims {size:,} bytes")
            values = file.read(size + 1)
            if len(values) != size:
                raise ValueError(f"it holds {len(values):,} bytes instead of {size:,}")
        return np.frombuffer(values, dtype=np.uint8).reshape(shape)


def mnist(cache: Path | None = None) -> ImageDataset:
    """MNIST as torchvision downloads it."""
    from torchvision.datasets import MNIST

    cache = cache or cache_folder()
    folder = cache / "MNIST" / "raw"
    try:
        MNIST(cache, download=not find_mnist(folder))
    except (OSError, RuntimeError) as error:  # URLError is an OSError; without a source it is a RuntimeError
        what = f"cannot download MNIST to {printable(cache)}: {printable(error)}"
        raise ResourceError(what, "put its four files into a folder, and name it with --data") from error
    files = find_mnist(folder)
    if not files:
        raise DataError(f"{printable(folder)} does not hold the four files of MNIST", "remove it")
    return read_mnist(files, "mnist", cache)
