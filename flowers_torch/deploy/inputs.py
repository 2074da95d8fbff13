"""What people pass as an image: files, URLs, bytes, Pillow images, arrays and tensors; and as several images."""

import glob
import inspect
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from flowers_torch.data.images import MAX_PIXELS, is_image_name, load_image
from flowers_torch.data.opened_images import to_upright_rgb
from flowers_torch.data.sources.tree import is_hidden
from flowers_torch.data.value_range import Range
from flowers_torch.errors import DataError, UsageError, one_line, printable
from flowers_torch.files.download import fetch_bytes
from flowers_torch.files.system import expand_home
from flowers_torch.log import log

# A path, an http(s) URL, the content of a file, an open binary file, or pixels.
ImageSource = str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes] | Image.Image | NDArray[Any] | Tensor
CHANNELS = {1: "L", 3: "RGB", 4: "RGBA"}


def open_image(
    source: ImageSource, name: str, max_pixels: int = MAX_PIXELS, at_least: int = 0, value_range: Range = ()
) -> Image.Image:
    """Any image as an upright RGB image; `name` is that of its errors, the other arguments are `load_image`'s.

    Raises:
        DataError, ResourceError: the image cannot be read, or its URL cannot be fetched.
    """
    if isinstance(source, Image.Image):
        return to_upright_rgb(source, name, max_pixels, at_least, value_range)
    if isinstance(source, np.ndarray | Tensor):
        return to_upright_rgb(_image_of_pixels(source, name), name, max_pixels, at_least, value_range)
    if is_url(source):
        source = fetch_bytes(str(source))
    if isinstance(source, bytes | bytearray | memoryview):
        source = io.BytesIO(source)
        source.name = name  # for error messages
    if isinstance(source, str | os.PathLike):
        return load_image(source, max_pixels, at_least, value_range)
    if hasattr(source, "read"):
        return load_image(_binary_file(source, name), max_pixels, at_least, value_range)
    kind = f"{type(source).__module__}.{type(source).__name__}"
    raise DataError(
        f"{name} is not an image but {printable(kind)}", "give a path, a URL, bytes, a PIL image or an array"
    )


def _binary_file(file: Any, name: str) -> IO[bytes]:
    """An open file; the content of one that cannot seek, such as the response of a server."""
    if isinstance(file, io.TextIOBase) or inspect.iscoroutinefunction(file.read):
        raise DataError(f"{name} is not an open binary file", 'open it with mode "rb", or give its bytes')
    if not hasattr(file, "seek") or not getattr(file, "seekable", lambda: True)():
        content = io.BytesIO(file.read())
        content.name = name
        return content
    binary: IO[bytes] = file
    return binary


def _image_of_pixels(pixels: NDArray[Any] | Tensor, name: str) -> Image.Image:
    """An array (H, W), (H, W, C) or a tensor (H, W), (C, H, W) of one image; C is 1, 3 (RGB) or 4 (RGBA)."""
    values: NDArray[Any]
    if isinstance(pixels, Tensor):
        try:
            values = (pixels.float() if pixels.is_floating_point() else pixels).detach().cpu().numpy()
        except (TypeError, NotImplementedError, RuntimeError) as error:
            raise DataError(
                f"{name} is a tensor without plain values: {one_line(error)}", "give a dense one"
            ) from error
        values = np.moveaxis(values, 0, -1) if values.ndim == 3 else values
        order = "(channels, height, width)"
    else:
        values, order = pixels, "(height, width, channels)"
    if values.ndim == 2:
        values = values[..., None]
    if values.ndim != 3 or values.shape[2] not in CHANNELS or 0 in values.shape:
        fix = f"give {order} with 1, 3 or 4 channels, or (height, width)"
        raise DataError(f"{name} has the shape {tuple(pixels.shape)}", fix)
    if values.dtype.kind == "f":
        low, high = float(values.min()), float(values.max())
        if not 0 <= low <= high <= 1:  # also for NaN
            fix = "give uint8, or floats in 0..1; a normalized input of the network goes to `classifier.network`"
            raise DataError(f"{name} has floats from {low:g} to {high:g}", fix)
        values = np.rint(values * 255).astype(np.uint8)
    elif values.dtype == bool:
        values = values.astype(np.uint8) * 255
    if values.dtype == np.uint16 and values.shape[2] == 1:
        return Image.fromarray(np.ascontiguousarray(values[..., 0]))
    if values.dtype != np.uint8:
        raise DataError(f"{name} has values of type {values.dtype}", "give uint8, or floats in 0..1")
    return Image.fromarray(np.ascontiguousarray(values if values.shape[2] > 1 else values[..., 0]))


def name_of(source: Any) -> str:
    """What errors and predictions call an image: its path or URL, else its kind."""
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    return str(getattr(source, "filename", "") or getattr(source, "name", "") or "the image")


def is_single(images: Any) -> bool:
    """Whether an argument is one image, as opposed to several; a folder, a glob and a batch (N, ...) are several."""
    if isinstance(images, np.ndarray | Tensor):
        return images.ndim < 4 and not _holds_objects(images)
    if isinstance(images, str | os.PathLike):
        text = os.fspath(images)
        return is_url(images) or not (os.path.isdir(expand_home(text)) or _is_pattern(text))
    return isinstance(images, bytes | bytearray | memoryview | Image.Image) or hasattr(images, "read")


def _holds_objects(images: NDArray[Any] | Tensor) -> bool:
    """Whether an array holds paths or other images instead of pixels."""
    return isinstance(images, np.ndarray) and images.ndim == 1 and images.dtype.kind in "OUT"


def each_image(images: Any) -> Iterable[ImageSource]:
    """The images of an argument of several: a folder, a glob, a batch (N, ...), or any iterable, left as lazy as it is.

    Raises:
        UsageError: it holds no images, or is nothing of this kind.
    """
    if isinstance(images, str | os.PathLike):
        if not os.fspath(images):  # it would be the working folder
            raise UsageError("the path of the images is empty", "name a file, a folder or a glob")
        return find_inputs([os.fspath(images)])
    what = f"images of type {type(images).__name__} are not valid"
    if type(images).__name__ == "DataFrame":
        raise UsageError(what, 'give the column of the files, such as frame["file"]')
    if not isinstance(images, Iterable):
        fix = "give a path, a URL, bytes, a PIL image, an array, or a list of them; labeled images go to `evaluate`"
        raise UsageError(what, fix)
    return images


def is_url(source: object) -> bool:
    """Whether a source is an http(s) URL."""
    return isinstance(source, str) and source.lower().startswith(("http://", "https://"))


def _is_pattern(text: str) -> bool:
    return any(c in text for c in "*?[") and not os.path.lexists(expand_home(text))


def find_inputs(patterns: Sequence[str]) -> list[Path | str]:
    """Like `find_files`; http(s) URLs are returned as they are."""
    found: dict[Path | str, None] = {}
    for pattern in patterns:
        found |= dict.fromkeys([pattern] if is_url(pattern) else find_files([pattern]))
    return list(found)


def find_files(patterns: Sequence[str]) -> list[Path]:
    """Image files named by paths, folders (searched recursively) and globs, each once, in order.

    Raises:
        UsageError: a pattern matches no image.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        path = expand_home(pattern)
        if os.path.isdir(path):
            matches = []
            for at, folders, names in os.walk(path, onerror=_warn):
                folders[:] = [name for name in folders if not is_hidden(name)]
                # guard: S9 find
                matches += [path for path in (Path(at, name) for name in names) if is_image_name(path)]
            matches = [path for path in matches if not is_hidden(path.name)]
            matches.sort()
        elif os.path.lexists(path):
            matches = [path]
        else:
            matches = sorted(map(Path, glob.glob(str(path), recursive=True)))
        if not matches:  # guard: K07
            raise UsageError(f"no photo at {printable(pattern)}", "name files, folders or globs")
        found |= dict.fromkeys(matches)
    return list(found)


def _warn(error: OSError) -> None:
    log.warning(f"WARNING  cannot read {printable(error.filename)}: {error.strerror}; its photos are left out")
