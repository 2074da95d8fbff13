"""Datasets of Python programs as a table on the disk, which a run can open again: see `write_dataset`.

Photos that are files stay where they are. Other images are written once, without loss.
"""

import csv
import hashlib
import io
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Subset

from flowers_torch.data.images import SUFFIXES, decoding
from flowers_torch.data.sources.archives import staged_folder
from flowers_torch.data.sources.arrays import check_arrays
from flowers_torch.data.sources.hugging_face import hugging_face_rows, is_hugging_face, load_hugging_face
from flowers_torch.data.sources.rows import split_of_name
from flowers_torch.data.sources.table_columns import find_columns
from flowers_torch.data.sources.table_text import Table, TableRow
from flowers_torch.errors import DataError, ResourceError, UsageError, plural, printable
from flowers_torch.files.cache import CACHE_FIX
from flowers_torch.files.system import expand_home, replace

ACCEPTED = (
    "a folder or another source of `open_dataset`, (paths, labels), (images, labels), a DataFrame, a torch Dataset, "
    "a Hugging Face dataset, or a dict of these by split"
)
IMAGES = "images"  # folder beside the table


class LabeledImage(NamedTuple):
    """An image with its label: a path, the content of a file, a Pillow image, or an array or tensor of pixels."""

    image: Any
    label: str
    split: str = ""


def write_dataset(data: Any, cache: Path, name: str = "") -> Path:
    """Writes a dataset as a table `file,label[,split]` in a folder of the cache that its content names.

    Args:
        data: `(paths, labels)`, where an image may also be the bytes of a file, a Pillow image, an array
            (H, W, 3) or a tensor (3, H, W); a pandas or polars DataFrame; a torch `Dataset` of `(image, label)`; a
            Hugging Face `Dataset`; or a dict of these by the name of their split.
        name: Of the dataset in reports.

    Returns:
        The path of the table, for `open_dataset`.

    Raises:
        DataError, UsageError: the data is of another kind, or no image.
        ResourceError: the cache cannot be written.
    """
    rows: Iterable[Any]
    if is_data_frame(data):
        header, rows = _rows_of_frame(data)
        name = name or "dataframe"
    else:
        header, rows = ["file", "label", "split"], _rows(data, "")
        name = name or "photos"
    return _write(header, rows, cache, name)


def hugging_face_table(name: str, cache: Path) -> Path:
    """The table of a dataset on the Hugging Face hub, or of one in a folder; see `write_dataset`."""
    data, key = load_hugging_face(name)
    stem = "".join(c if c.isalnum() or c in "._-" else "_" for c in Path(name).name) or "hf"
    known = cache / "datasets" / f"{stem}-{key}" / f"{stem}.csv"
    if key and known.is_file():
        return known
    return _write(["file", "label", "split"], _rows(data, ""), cache, stem, key)


def _write(header: list[str], rows: Iterable[Any], cache: Path, name: str, key: str = "") -> Path:
    """Writes new images and the table into a folder, unless it is there already; without `key` its content names it."""
    digest, written, parent = hashlib.sha256(), list[list[str]](), cache / "datasets"
    _written(parent, parent.mkdir, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".new-", dir=parent) as place:
        images = Path(place) / IMAGES
        images.mkdir()
        for number, (image, *cells) in enumerate(rows):
            if isinstance(image, str | os.PathLike):
                file = os.path.abspath(expand_home(os.fspath(image)))
            else:
                with decoding(f"image {number} of the dataset"):
                    suffix, content = _encoded(image, f"image {number}")
                file = f"{IMAGES}/{number:07d}{suffix}"
                _written(images, (images / Path(file).name).write_bytes, content)
                digest.update(content)
            digest.update(repr((file, cells)).encode())
            written.append([file, *cells])
        if not written:
            raise DataError(f"{printable(name)} holds no images", f"give {ACCEPTED}")
        folder = parent / f"{name}-{key or digest.hexdigest()[:12]}"
        if not folder.is_dir():
            with staged_folder(folder) as staging:
                _write_table(staging / f"{name}.csv", header, written)
                replace(images, staging / IMAGES)
    return folder / f"{name}.csv"


def _written(folder: Path, write: Callable[..., object], *arguments: Any, **options: Any) -> None:
    """Writes something below a folder; what the system refuses is a `ResourceError`."""
    try:
        write(*arguments, **options)
    except OSError as error:
        raise ResourceError(f"cannot write {printable(folder)}: {error.strerror or error}", CACHE_FIX) from error


def _write_table(path: Path, header: list[str], rows: list[list[str]]) -> None:
    """A CSV table without the columns that are empty."""
    used = [column for column in range(len(header)) if any(row[column] for row in rows)]
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([[row[column] for column in used] for row in [header, *rows]])


def _encoded(image: Any, name: str) -> tuple[str, bytes]:
    """The suffix and the bytes of an image's file: the content as it is, pixels as PNG."""
    if isinstance(image, bytes | bytearray | memoryview):
        try:
            with Image.open(io.BytesIO(image)) as opened:
                suffix = SUFFIXES.get(opened.format or "", ".png").split()[0]
        except (OSError, Image.DecompressionBombError):
            suffix = ".png"  # whoever reads it names what is wrong
        return suffix, bytes(image)
    if isinstance(image, np.ndarray | Tensor):
        values = image.detach().cpu().numpy() if isinstance(image, Tensor) else image
        if values.ndim == 3 and isinstance(image, Tensor):
            values = np.moveaxis(values, 0, -1)
        pixels, _, _ = check_arrays(values[None] if values.ndim == 3 else values[None, ..., None], np.zeros(1, int))
        image = Image.fromarray(np.ascontiguousarray(pixels[0]))
    if not isinstance(image, Image.Image):
        kind = f"{type(image).__module__}.{type(image).__name__}"
        what = f"{name} of the dataset is not an image but {printable(kind)}"
        raise DataError(what, "give paths, PIL images, arrays (height, width, 3) or tensors (3, height, width)")
    file = io.BytesIO()
    kept = image if image.mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16") else image.convert("RGB")
    profile, exif = image.info.get("icc_profile"), image.getexif().tobytes()
    kept.save(file, "PNG", compress_level=1, icc_profile=profile, exif=exif or None)
    return ".png", file.getvalue()


def _rows(data: Any, split: str) -> Iterator[LabeledImage]:
    if isinstance(data, Mapping):
        for key, value in data.items():
            named = split_of_name(str(key))
            if not named:
                what = f"the key {printable(repr(key), 40)} of the dataset is not the name of a split"
                raise UsageError(what, "use train, val and test")
            if is_data_frame(value):
                raise UsageError("a dict of DataFrames is not a dataset", "give one DataFrame with a column split")
            yield from _rows(value, named if len(data) > 1 else "")
    elif is_hugging_face(data):
        yield from (LabeledImage(image, label, split) for image, label in hugging_face_rows(data))
    elif isinstance(data, Dataset):
        yield from (LabeledImage(image, label, split) for image, label in _rows_of_torch(data))
    elif isinstance(data, Sequence) and len(data) == 2 and not isinstance(data, str):
        images, labels = (list(each) if isinstance(each, Iterator) else each for each in data)
        if len(images) != len(labels):
            raise UsageError(f"{plural(images, 'image')} and {plural(labels, 'label')}", "give one label for each")
        yield from (LabeledImage(image, _label(label), split) for image, label in zip(images, labels, strict=True))
    else:
        kind = f"{type(data).__module__}.{type(data).__name__}"
        raise UsageError(f"data of type {printable(kind)} is not a dataset", f"give {ACCEPTED}")


def _label(label: Any, classes: Sequence[str] = ()) -> str:
    """The name of a class; `classes` are those of numbers."""
    count = label.numel() if isinstance(label, Tensor) else getattr(label, "size", 0)
    value = label.item() if isinstance(label, Tensor | np.ndarray | np.generic) and count == 1 else label
    value = int(value) if isinstance(value, float) and value.is_integer() else value
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(classes):
        return str(classes[value])
    if not isinstance(value, str | int):
        what = f"a label of type {printable(type(label).__name__)} is not a class"
        raise DataError(what, "give one name or one number for each image")
    return str(value)


def _rows_of_torch(data: Any) -> Iterator[tuple[Any, str]]:
    """The items of a torch dataset. Of torchvision's folders the files, without their transform."""
    if not hasattr(data, "__len__"):
        what = f"{printable(type(data).__name__)} has no length"
        raise UsageError(what, "give a dataset that takes an index, or (images, labels)")
    indices: list[int] = list(range(len(data)))
    while isinstance(data, Subset):
        data, indices = data.dataset, [data.indices[index] for index in indices]
    classes, samples = getattr(data, "classes", ()), getattr(data, "samples", None)
    has_files = isinstance(samples, list) and samples and isinstance(samples[0], tuple)
    for index in indices:
        item = samples[index] if has_files and samples else data[index]
        if not isinstance(item, tuple | list) or len(item) < 2:
            what = f"item {index} of {printable(type(data).__name__)} is not (image, label)"
            raise DataError(what, "let the dataset return an image and its class")
        yield item[0], _label(item[1], classes)


def is_data_frame(data: Any) -> bool:
    """Whether it is a DataFrame of pandas or polars, without importing them."""
    return type(data).__name__ == "DataFrame" and hasattr(data, "columns")


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _rows_of_frame(frame: Any) -> tuple[list[str], list[list[Any]]]:
    """The header and the rows of a DataFrame, with the column of the files in front."""
    header = [str(column) for column in frame.columns]
    values = [["" if _is_missing(value) else value for value in frame[column]] for column in frame.columns]
    cells = [dict(zip(header, map(str, row), strict=True)) for row in zip(*values, strict=True)]
    rows = [(number, TableRow(row)) for number, row in enumerate(cells)]
    file = find_columns(Table(Path("the DataFrame"), header, rows)).file
    order = [file, *(column for column in header if column != file)]
    files = values[header.index(file)]
    return order, [[image, *(row[c] for c in order[1:])] for image, row in zip(files, cells, strict=True)]
