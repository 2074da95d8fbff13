"""Images in arrays (in memory, in HDF5 files of courses, CIFAR-10), written once as lossless PNG files."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from flowers_torch.data.dataset import ImageDataset
from flowers_torch.data.sources.archives import safe_components, staged_folder
from flowers_torch.data.sources.folders import find_images
from flowers_torch.errors import DataError, ResourceError, UsageError, plural, printable
from flowers_torch.files.cache import cache_folder, recall, remember
from flowers_torch.files.download import file_digest
from flowers_torch.files.reading import reading, require_regular
from flowers_torch.files.system import caseless, ignores_case

MAX_CLASSES = 100_000
MAX_RATIO = 10  # of arrays to their HDF5 file; photos compress less
SMALL_BYTES = 100 << 20  # of arrays, allowed whatever the ratio
HDF5_SUFFIXES = (".h5", ".hdf5")
NOTES_FILE = ".notes.json"  # hidden, so that it is not listed as an image
NOTES_FORM = {"notes": [str], "classes": [str]}


def check_arrays(images: Any, labels: Any, classes: int | None = None) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Converts arrays of the usual layouts to uint8 (N, H, W, 3) and class indices (N,), with notes.

    Args:
        images: (N, H, W, 3), (N, 3, H, W), (N, H, W) or (N, H, W, 1); integers in 0..255, or floats in 0..1
            or 0..255. Anything else is a `DataError`.
        labels: (N,), (N, 1) or (1, N) indices from 0, or one-hot (N, classes).
        classes: Number of classes; the highest label + 1 if None.
    """
    notes: list[str] = []
    pixels = _to_uint8(_to_channels_last(np.asarray(images), notes), notes)
    return pixels, _to_indices(np.asarray(labels), len(pixels), classes, notes), notes


def _to_channels_last(images: np.ndarray, notes: list[str]) -> np.ndarray:
    shape = images.shape
    if images.ndim == 3 and shape[-1] != 3:
        notes.append(f"gray images {shape} read as (N, height, width)")
        images = images[..., None]
    if images.ndim != 4 or 0 in shape:
        raise DataError(f"images have the shape {shape}", "give (N, height, width, 3), (N, 3, height, width) or gray")
    if images.shape[-1] not in (1, 3) and shape[1] in (1, 3):
        notes.append(f"images {shape} have their channels first: moved to the last axis")
        images = images.transpose(0, 2, 3, 1)
    if images.shape[-1] not in (1, 3):
        raise DataError(f"images of shape {shape} have no axis of 1 or 3 channels", "give RGB or gray images")
    return np.broadcast_to(images, (*images.shape[:3], 3))


def _to_uint8(images: np.ndarray, notes: list[str]) -> np.ndarray:
    if images.dtype == np.uint8:
        return images
    if images.dtype.kind not in "iufb":
        raise DataError(f"images have the type {images.dtype}, not numbers", "give uint8 or float images")
    low, high = float(images.min()), float(images.max())
    if not np.isfinite([low, high]).all():
        raise DataError("images hold values that are not finite (NaN or infinite)", "find where they arise")
    if images.dtype.kind == "b" or (images.dtype.kind == "f" and 0 <= low and high <= 1):
        notes.append(f"{images.dtype} images in 0..1: multiplied by 255")
        return np.rint(images.astype(np.float32) * 255).astype(np.uint8)
    if 0 <= low and high <= 255:
        notes.append(f"{images.dtype} images in 0..255: rounded to 8 bits")
        return np.rint(images).astype(np.uint8)
    raise DataError(f"images have values from {low:g} to {high:g}", "give 0..255 or 0..1, before any normalization")


def _to_indices(labels: np.ndarray, count: int, classes: int | None, notes: list[str]) -> np.ndarray:
    shape = labels.shape
    if labels.ndim == 2 and 1 in shape and max(shape) == count:
        labels = labels.reshape(-1)
        notes.append(f"labels of shape {shape}: read as ({count},)")
    elif labels.ndim == 2 and shape[0] == count:
        if not (np.isin(labels, (0, 1)).all() and (labels.sum(axis=1) == 1).all()):
            raise DataError(f"labels of shape {shape} are not one-hot", "give class indices or one 1 per row")
        labels = labels.argmax(axis=1)
        notes.append(f"one-hot labels of shape {shape}: converted to indices")
    if labels.shape != (count,):
        raise DataError(f"{plural(count, 'image')}, but labels of shape {shape}", "give one label for each image")
    with np.errstate(invalid="ignore"):  # signaling NaNs
        integral = labels.dtype.kind == "f" and bool((labels == np.rint(labels)).all())
    whole = integral and bool((abs(labels) < MAX_CLASSES).all())
    if labels.dtype.kind not in "iub" and not whole:
        raise DataError(f"labels have the type {labels.dtype}", "give class indices from 0")
    labels = labels.astype(np.int64)
    low, high = int(labels.min()), int(labels.max())
    if classes is not None and low == 1 and high == classes:
        notes.append(f"labels count from 1 to {classes}: shifted to 0 .. {classes - 1}")
        labels, low, high = labels - 1, 0, classes - 1
    if low < 0 or high >= (classes or MAX_CLASSES):  # guard: S4 labels
        allowed = f"0 .. {(classes or MAX_CLASSES) - 1:,}"
        raise DataError(f"labels reach from {low} to {high}, expected {allowed}", "count classes from 0")
    return labels


def write_images(
    folder: Path, splits: dict[str, tuple[Any, Any]], classes: Sequence[str] | None = None, name: str | None = None
) -> ImageDataset:
    """Writes arrays as class folders of PNG files and returns them as a dataset.

    Args:
        folder: Written completely or not at all. An existing folder is read as it is.
        splits: "train" (and "val", "test") to (images, labels); see `check_arrays`. A single entry gives a
            dataset without a split.
        classes: Names in the order of the labels; numbers if None.
        name: Name of the dataset; the folder's name if None.

    Raises:
        DataError: ambiguous arrays, or class names that are not valid folder names.
    """
    if not folder.is_dir():
        count = len(classes) if classes else None
        checked = {split: check_arrays(images, labels, count) for split, (images, labels) in splits.items()}
        highest = max(int(labels.max()) for _, labels, _ in checked.values())
        names = list(classes) if classes else [str(label) for label in range(highest + 1)]
        bad = [n for n in names if n.startswith(".") or len(n.encode()) > 255 or safe_components(n) != [n]]
        if bad or len(set(names)) < len(names):
            what = "that are not valid folder names" if bad else "that occur twice"
            raise DataError(f"class names {what}: {', '.join(map(printable, bad or names))}", "rename them")
        with staged_folder(folder) as staging:
            if len(set(map(caseless, names))) < len(names) and ignores_case(staging):
                what = f"class names that are one folder on this disk: {', '.join(map(printable, names))}"
                raise DataError(what, "rename one of them, or name another disk with --cache")
            for split, (images, labels, _) in checked.items():
                root = staging / split if len(checked) > 1 else staging
                for label in np.unique(labels):
                    (root / names[label]).mkdir(parents=True)
                for index, (image, label) in enumerate(zip(images, labels, strict=True)):
                    path = root / names[label] / f"{index:06d}.png"
                    Image.fromarray(np.ascontiguousarray(image)).save(path, compress_level=1)
            notes = [f"{split}: {note}" for split, (_, _, notes) in checked.items() for note in notes]
            remember(staging / NOTES_FILE, {"notes": notes, "classes": names})
    content = recall(folder / NOTES_FILE, NOTES_FORM)
    if content is None:
        raise DataError(f"{printable(folder)} is damaged, or holds other files", "delete it, or name a new folder")
    dataset = find_images(folder, name, classes="top")
    notes = content["notes"] + [note for note in dataset.notes if NOTES_FILE not in note]
    # In the order of the labels instead of the natural order of folders.
    ordered = tuple(label for label in content["classes"] if label in dataset.classes)
    indices = tuple(ordered.index(dataset.classes[label]) for label in dataset.labels)
    return replace(dataset, classes=ordered, labels=indices, notes=tuple(notes), unused=(), layout="")


def _is_cached(folder: Path) -> bool:
    """Whether the cache holds the images; a folder that is not as it was written is removed."""
    if folder.is_dir() and recall(folder / NOTES_FILE, NOTES_FORM) is None:  # guard: S10 images
        shutil.rmtree(folder, ignore_errors=True)
    return folder.is_dir()


def read_arrays(folder: Path, name: str, read: Callable[[], dict[str, tuple[Any, Any]]]) -> ImageDataset:
    """`write_images` of arrays that are read only where the folder does not hold them yet."""
    return write_images(folder, {} if _is_cached(folder) else read(), name=name)


def read_hdf5(path: Path, cache: Path | None = None) -> ImageDataset:
    """Reads an HDF5 file with `train_set_x`, `train_set_y`, `test_set_x`, `test_set_y`, `list_classes`.

    Courses ship one file for each split: the other one is looked for beside `path`, under the name with
    `train` and `test` exchanged. Images of test alone are read as a dataset without a split.
    """
    own, other = ("train", "test") if "train" in path.stem else ("test", "train")
    sibling = path.with_name(path.stem.replace(own, other) + path.suffix)
    files = [path, sibling] if sibling != path and sibling.is_file() else [path]
    with reading(path, "a readable HDF5 file"):
        digest = "-".join(file_digest(file)[:12] for file in files)
    folder = (cache or cache_folder()) / f"{path.stem[:64]}-{digest}"
    if _is_cached(folder):
        return write_images(folder, {}, name=path.stem)
    entries: dict[str, np.ndarray] = {}
    for file in reversed(files):
        entries |= _read_entries(file)
    keys = {split: (f"{split}_set_x", f"{split}_set_y") for split in ("train", "test")}
    splits = {split: (entries[x], entries[y]) for split, (x, y) in keys.items() if {x, y} <= entries.keys()}
    if not splits:
        what = f"{printable(path)} lacks train_set_x and train_set_y (it holds {', '.join(sorted(entries))})"
        raise DataError(what, "use these names")
    names = None
    if (classes := entries.get("list_classes")) is not None:
        values = classes.ravel()[: MAX_CLASSES + 1].tolist()
        names = [v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v) for v in values]
    return write_images(folder, splits, names, name=path.stem)


def _read_entries(path: Path) -> dict[str, np.ndarray]:
    try:
        import h5py
    except ImportError as error:
        raise UsageError("HDF5 files need h5py", 'pip install "flowers-torch[keras]"') from error
    found = {}
    with reading(path, "a readable HDF5 file"):  # guard: S8 HDF5
        left = max(SMALL_BYTES, MAX_RATIO * require_regular(path))
        with h5py.File(path, "r") as file:
            for key in ("train_set_x", "train_set_y", "test_set_x", "test_set_y", "list_classes"):
                # A link could lead to any other file of this machine. Even `key in file` would follow it.
                name, links = key.encode(), file.id.links
                if not links.exists(name) or links.get_info(name).type != h5py.h5l.TYPE_HARD:  # guard: S4 link
                    continue
                entry = file[key]
                if not isinstance(entry, h5py.Dataset) or entry.external or entry.is_virtual:  # guard: S4 elsewhere
                    raise ValueError(f"{key} is not a plain array")
                left -= entry.nbytes
                if left < 0:  # guard: S4 claim
                    raise ValueError(f"{key} claims {entry.nbytes:,} bytes")
                if entry.dtype.kind == "O" and entry.size > MAX_CLASSES:
                    raise ValueError(f"{key} is not an array of numbers")
                found[key] = entry[()]
    return found


def is_cifar10(folder: Path) -> bool:
    """Whether a folder has the layout of `cifar-10-batches-py`."""
    return (folder / "data_batch_1").is_file() and (folder / "batches.meta").is_file()


def cifar10(cache: Path | None = None, source: Path | None = None) -> ImageDataset:
    """CIFAR-10, read by torchvision, which unpickles only batches with the original checksums.

    `source` is a folder `cifar-10-batches-py`; if None, it is taken from the cache or downloaded.
    """
    from torchvision.datasets import CIFAR10

    cache = cache or cache_folder()
    folder = cache / "cifar10"
    if _is_cached(folder):
        return write_images(folder, {}, name="cifar10")
    files = type("Files", (CIFAR10,), {"base_folder": source.name}) if source else CIFAR10
    place = source.parent if source else cache
    try:
        train, test = (files(place, train=part, download=source is None) for part in (True, False))
    except (OSError, RuntimeError) as error:  # URLError is an OSError; a wrong checksum a RuntimeError
        if source:
            what = f"{printable(source)} does not hold the original files of CIFAR-10: {printable(error)}"
            raise DataError(what, "unpack cifar-10-python.tar.gz again") from error
        what = f"cannot download CIFAR-10 to {printable(cache)}: {printable(error)}"
        raise ResourceError(what, "put cifar-10-python.tar.gz there, or its folder cifar-10-batches-py") from error
    splits = {"train": (train.data, train.targets), "test": (test.data, test.targets)}
    return write_images(folder, splits, train.classes, name="cifar10")
