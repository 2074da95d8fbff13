"""Datasets of the Hugging Face library `datasets`, of the extra `hf`."""

import hashlib
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from flowers_torch.data.sources.rows import listed
from flowers_torch.errors import DataError, ResourceError, UsageError, one_line, printable
from flowers_torch.files.system import expand_home

PREFIX = "hf:"  # in front of the name of a dataset on the hub, or of a folder that `save_to_disk` wrote
IMAGE_NAMES, LABEL_NAMES = ("image", "img", "photo", "picture"), ("label", "labels", "class", "target")


def is_hugging_face(data: Any) -> bool:
    """Whether it is a `datasets.Dataset`, without importing the library."""
    return hasattr(data, "features") and hasattr(data, "column_names") and hasattr(data, "cast_column")


def load_hugging_face(name: str) -> tuple[Any, str]:
    """The dataset of that name or in that folder, and a key that changes with its content.

    Raises:
        UsageError: the library is not installed.
        DataError, ResourceError: the dataset cannot be loaded.
    """
    library = _library()
    folder = expand_home(name)
    is_saved = any((folder / file).is_file() for file in ("dataset_dict.json", "state.json"))
    try:
        data = library.load_from_disk(str(folder)) if is_saved else library.load_dataset(name)
    except Exception as error:  # of the library, of the network, of the files
        what = f"{PREFIX}{printable(name)} cannot be loaded: {one_line(error)}"
        kind = ResourceError if isinstance(error, OSError) and not isinstance(error, FileNotFoundError) else DataError
        raise kind(what, "give the name of a dataset on the hub, or a folder of `save_to_disk`") from error
    parts = data.values() if isinstance(data, dict) else [data]
    prints = [getattr(part, "_fingerprint", "") for part in parts]
    return data, hashlib.sha256(repr((name, prints)).encode()).hexdigest()[:12] if all(prints) else ""


def hugging_face_rows(data: Any) -> Iterator[tuple[Any, str]]:
    """Image and class of each row that has a label. Images are the bytes of their files, or paths.

    Raises:
        DataError: no column of images or of classes, or several.
    """
    library = _library()
    image = _column(data, library.Image, IMAGE_NAMES, "images")
    label = _column(data, library.ClassLabel, LABEL_NAMES, "classes")
    if isinstance(data.features[image], library.Image):
        data = data.cast_column(image, library.Image(decode=False))
    names = getattr(data.features[label], "names", None)
    for row in data.select_columns([image, label]):
        value, content = row[label], row[image]
        if value is None or (names and value < 0):  # the label of a hidden test
            continue
        if isinstance(content, dict):
            content = content["bytes"] or content["path"]
        yield content, names[value] if names else str(value)


def _column(data: Any, kind: type, usual: tuple[str, ...], use: str) -> str:
    """The column of a kind; of several, the one with the usual name; without any, the column of that name."""
    found = [name for name, feature in data.features.items() if isinstance(feature, kind)]
    named = [name for name in (found or data.column_names) if name.lower() in usual]
    if len(found) == 1 or len(named) == 1:
        return str(found[0] if len(found) == 1 else named[0])
    what = f"the dataset has {'several columns' if found or named else 'no column'} of {use}"
    fix = f'name one of {listed(found or data.column_names)} "{usual[0]}" with rename_column'
    raise DataError(what, fix)


def _library() -> ModuleType:
    try:
        import datasets
    except ImportError as error:
        raise UsageError("datasets of Hugging Face need datasets", 'pip install "flowers-torch[hf]"') from error
    library: ModuleType = datasets
    return library
