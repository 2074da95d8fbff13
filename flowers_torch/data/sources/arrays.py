"""Pictures in arrays: from memory, from HDF5 files of courses, from CIFAR-10.

They are checked, written once as lossless PNG files into class folders, and then are photos like any others:
the same loader, check, split and report. What was converted is said in the notes; what cannot be meant is an
error.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from flowers_torch.data.dataset import ImageDataset
from flowers_torch.data.sources.archives import staged_folder
from flowers_torch.data.sources.folders import find_images
from flowers_torch.errors import DataError, ResourceError, UsageError, printable
from flowers_torch.files.atomic import write_json
from flowers_torch.files.cache import cache_folder
from flowers_torch.files.download import file_digest

MAX_BYTES = 32 * 1024**3
HDF5_SUFFIXES = (".h5", ".hdf5")
NOTES_FILE = ".notes.json"  # hidden, so no part of the photos


@dataclass(frozen=True)
class ImageArrays:
    """Checked pictures of one part.

    Attributes:
        images: uint8 (N, height, width, 3).
        labels: Class indices (N,).
        notes: What was converted.
    """

    images: np.ndarray
    labels: np.ndarray
    notes: tuple[str, ...]


def check_arrays(
    images: Any, labels: Any, classes: int | None = None, size: tuple[int, int] | None = None
) -> ImageArrays:
    """Brings arrays of the usual layouts to uint8 (N, H, W, 3) and indices (N,).

    Args:
        images: (N, H, W, 3), (N, 3, H, W), or grey (N, H, W) and (N, H, W, 1); integers 0..255, or floats in
            0..1 or 0..255. NumPy or anything that NumPy can read.
        labels: (N,), (N, 1) or (1, N) indices from 0, or one-hot (N, classes).
        classes: How many there are; the highest label + 1 if None.
        size: (height, width) that all pictures must have.

    Raises:
        DataError: saying what was given and what is accepted.
    """
    notes: list[str] = []
    pixels = _pixels(_layout(np.asarray(images), notes), notes)
    if size is not None and pixels.shape[1:3] != tuple(size):
        found = "x".join(map(str, pixels.shape[1:3]))
        raise DataError(
            f"the images are {found} (height x width), declared are {'x'.join(map(str, size))}",
            "declare their true size or resize them",
        )
    return ImageArrays(pixels, _indices(np.asarray(labels), len(pixels), classes, notes), tuple(notes))


def _layout(images: np.ndarray, notes: list[str]) -> np.ndarray:
    """To (N, H, W, 3)."""
    shape = images.shape
    if images.ndim == 3 and shape[-1] != 3:
        notes.append(f"grey images {shape} taken as (N, height, width)")
        images = images[..., None]
    if images.ndim != 4 or 0 in shape:
        raise DataError(
            f"images have the shape {shape}", "give (N, height, width, 3), (N, 3, height, width) or grey"
        )
    if images.shape[-1] not in (1, 3) and shape[1] in (1, 3):
        notes.append(f"images {shape} have their channels first: moved to the last axis")
        images = images.transpose(0, 2, 3, 1)
    if images.shape[-1] not in (1, 3):
        raise DataError(f"images of shape {shape} have no axis of 1 or 3 channels", "give RGB or grey images")
    return np.broadcast_to(images, (*images.shape[:3], 3))


def _pixels(images: np.ndarray, notes: list[str]) -> np.ndarray:
    """To uint8 in 0..255."""
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
    raise DataError(
        f"images have values from {low:g} to {high:g}", "give 0..255 or 0..1, before any standardising"
    )


def _indices(labels: np.ndarray, count: int, classes: int | None, notes: list[str]) -> np.ndarray:
    """To class indices from 0, one a picture."""
    shape = labels.shape
    if labels.ndim == 2 and 1 in shape and max(shape) == count:
        labels = labels.reshape(-1)
        notes.append(f"labels of shape {shape}: taken as ({count},)")
    elif labels.ndim == 2 and shape[0] == count:
        if not (np.isin(labels, (0, 1)).all() and (labels.sum(axis=1) == 1).all()):
            raise DataError(f"labels of shape {shape} are not one-hot", "give class indices or one 1 a row")
        labels = labels.argmax(axis=1)
        notes.append(f"one-hot labels of shape {shape}: converted to indices")
    if labels.shape != (count,):
        raise DataError(f"there are {count} images, but labels of shape {shape}", "give one label an image")
    if labels.dtype.kind == "f" and np.array_equal(labels, np.rint(labels)):
        labels = labels.astype(np.int64)
    if labels.dtype.kind not in "iub":
        raise DataError(f"labels have the type {labels.dtype}", "give class indices from 0")
    labels = labels.astype(np.int64)
    low, high = int(labels.min()), int(labels.max())
    if classes is not None and low == 1 and high == classes:
        notes.append(f"labels count from 1 to {classes}: shifted to 0 .. {classes - 1}")
        labels, low, high = labels - 1, 0, classes - 1
    if low < 0 or (classes is not None and high >= classes):
        allowed = f"0 .. {classes - 1}" if classes else "0 and up"
        raise DataError(f"labels reach from {low} to {high}, expected {allowed}", "count classes from 0")
    return labels


def write_images(
    folder: Path,
    parts: dict[str, tuple[Any, Any]],
    classes: Sequence[str] | None = None,
    size: tuple[int, int] | None = None,
    name: str | None = None,
) -> ImageDataset:
    """Writes arrays as class folders of PNG files and returns them as photos.

    Args:
        folder: Does not exist yet; appears whole or not at all. An existing one is read as it is.
        parts: "train" (and "val", "test") to (images, labels); see `check_arrays`. One part alone is not a
            split: it is split later.
        classes: Names in the order of the labels; numbers if None.
        size: (height, width) that all pictures must have.
        name: What to call the set; the folder's name if None.

    Raises:
        DataError: arrays that cannot be meant, class names that no folder can have.
        ResourceError: no space.
    """
    if not folder.is_dir():
        checked = {
            part: check_arrays(images, labels, len(classes) if classes else None, size)
            for part, (images, labels) in parts.items()
        }
        highest = max(int(pictures.labels.max()) for pictures in checked.values())
        names = [str(label) for label in range(highest + 1)] if classes is None else list(classes)
        bad = [n for n in names if n in ("", ".", "..") or n.startswith(".") or "/" in n or "\0" in n]
        if bad or len(set(names)) < len(names):
            what = "twice" if not bad else "that no folder can have"
            raise DataError(f"class names {what}: {', '.join(map(printable, bad or names))}", "rename them")
        with staged_folder(folder) as staging:
            for part, pictures in checked.items():
                _write_part(staging / part if len(checked) > 1 else staging, pictures, names)
            notes = [f"{part}: {note}" for part, pictures in checked.items() for note in pictures.notes]
            write_json(staging / NOTES_FILE, {"notes": notes, "classes": names})
    photos = find_images(folder, name)
    content = json.loads((folder / NOTES_FILE).read_text(encoding="utf-8"))
    kept = [note for note in photos.notes if NOTES_FILE not in note]
    return _in_order(replace(photos, notes=(*content["notes"], *kept)), content["classes"])


def _write_part(folder: Path, pictures: ImageArrays, names: list[str]) -> None:
    for label in np.unique(pictures.labels):
        (folder / names[label]).mkdir(parents=True)
    for index, (image, label) in enumerate(zip(pictures.images, pictures.labels, strict=True)):
        path = folder / names[label] / f"{index:06d}.png"
        Image.fromarray(np.ascontiguousarray(image)).save(path, compress_level=1)


def _in_order(photos: ImageDataset, names: list[str]) -> ImageDataset:
    """With the classes in the order of the source's labels instead of natural order."""
    classes = tuple(name for name in names if name in photos.classes)
    new_label = [classes.index(name) for name in photos.classes]
    return replace(photos, classes=classes, labels=tuple(new_label[label] for label in photos.labels))


def read_hdf5(path: Path, cache: Path | None = None) -> ImageDataset:
    """Photos of an HDF5 file with `train_set_x`, `train_set_y`, `test_set_x`, `test_set_y`, `list_classes`.

    Where a file holds one part only, the other is looked for beside it under the name with `train` and
    `test` exchanged, as courses ship them.

    Args:
        path: The file.
        cache: Where the pictures are written once; `files.cache_folder()` if None.

    Raises:
        DataError: damaged, without these entries, or arrays that cannot be meant.
        UsageError: h5py is not installed.
    """
    twin = _other_part(path)
    files = [path, *([twin] if twin else [])]
    digest = "-".join(file_digest(file)[:12] for file in files)
    folder = (cache or cache_folder()) / f"{path.stem[:64]}-{digest}"
    if folder.is_dir():
        return write_images(folder, {}, name=path.stem)
    entries: dict[str, np.ndarray] = {}
    for file in files:
        entries |= {key: value for key, value in _read_entries(file).items() if key not in entries}
    parts = {
        part: (entries[f"{part}_set_x"], entries[f"{part}_set_y"])
        for part in ("train", "test")
        if f"{part}_set_x" in entries and f"{part}_set_y" in entries
    }
    if "train" not in parts:
        raise DataError(
            f"{printable(path)} lacks train_set_x or train_set_y (it holds {', '.join(sorted(entries))})",
            "use these names",
        )
    listed = entries.get("list_classes")
    names = None
    if listed is not None:
        values = listed.ravel().tolist()
        names = [v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v) for v in values]
    return write_images(folder, parts, names, name=path.stem)


def _other_part(path: Path) -> Path | None:
    for own, other in (("train", "test"), ("test", "train")):
        if own in path.stem:
            twin = path.with_name(path.stem.replace(own, other) + path.suffix)
            return twin if twin.is_file() else None
    return None


def _read_entries(path: Path) -> dict[str, np.ndarray]:
    try:
        import h5py
    except ImportError as error:
        raise UsageError("HDF5 files need h5py", 'pip install "flowers-torch[keras]"') from error
    wanted = [f"{part}_set_{kind}" for part in ("train", "test") for kind in "xy"] + ["list_classes"]
    found = {}
    try:
        with h5py.File(path, "r") as file:
            for key in wanted:
                # A link could name any other file of this machine.
                if key not in file or not isinstance(file.get(key, getlink=True), h5py.HardLink):
                    continue
                entry = file[key]
                if not isinstance(entry, h5py.Dataset) or entry.nbytes > MAX_BYTES or entry.external:
                    raise DataError(f"{printable(path)}: {key} is no plain array", "use another file")
                found[key] = entry[()]
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        reason = printable(" ".join(str(error).split()))
        raise DataError(
            f"{printable(path)} is no readable HDF5 file: {reason}", "use another copy"
        ) from error
    return found


def is_cifar10(folder: Path) -> bool:
    """Whether a folder is laid out as `cifar-10-batches-py`."""
    return (folder / "data_batch_1").is_file() and (folder / "batches.meta").is_file()


def cifar10(cache: Path | None = None, source: Path | None = None) -> ImageDataset:
    """CIFAR-10 through torchvision, which unpickles only batches with the original's checksums.

    Args:
        cache: Where the pictures are written once; `files.cache_folder()` if None.
        source: A folder `cifar-10-batches-py`; if None it is looked for in the cache, or downloaded.

    Returns:
        60000 pictures of 32 x 32, split 50000 train and 10000 test by the source.

    Raises:
        DataError: the files of `source` are not the original's.
        ResourceError: neither there nor to be fetched.
    """
    from torchvision.datasets import CIFAR10

    cache = cache or cache_folder()
    folder = cache / "cifar10"
    if folder.is_dir():
        return write_images(folder, {}, name="cifar10")
    files = type("Files", (CIFAR10,), {"base_folder": source.name}) if source else CIFAR10
    sets = {}
    for part in ("train", "test"):
        try:
            sets[part] = files(source.parent if source else cache, part == "train", download=source is None)
        except (OSError, RuntimeError) as error:  # URLError is an OSError; a wrong checksum a RuntimeError
            if source:
                raise DataError(
                    f"{printable(source)} does not hold CIFAR-10's own files: {printable(error)}",
                    "unpack cifar-10-python.tar.gz again",
                ) from error
            raise ResourceError(
                f"cannot fetch CIFAR-10 to {printable(cache)}: {printable(error)}",
                "put cifar-10-python.tar.gz there, or its folder cifar-10-batches-py",
            ) from error
    parts = {part: (data.data, data.targets) for part, data in sets.items()}
    return write_images(folder, parts, sets["train"].classes, name="cifar10")
