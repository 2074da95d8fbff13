"""Images that a program holds as Pillow images, as `load_image` reads their files."""

import io
import threading

from PIL import Image, ImageFile

from flowers_torch.data.color import profile_of
from flowers_torch.data.images import (
    FORMATS,
    MAX_PIXELS,
    decoding,
    load_image,
    load_pixels,
    open_header,
    read_orientation,
    turn_upright,
)
from flowers_torch.data.pixels import LoadedImage, to_rgb
from flowers_torch.data.value_range import Range

_lock = threading.Lock()  # an image that several threads share may not be read from its file yet


def to_upright_rgb(
    image: Image.Image,
    name: str = "the image",
    max_pixels: int = MAX_PIXELS,
    at_least: int = 0,
    value_range: Range = (),
) -> Image.Image:
    """A Pillow image of any mode as `load_image` would return it from its file; the image does not change.

    One that was opened and not loaded is read from its file again, within the limits of `load_image`, which has the
    other arguments. A JPEG that was loaded has all of its pixels, so its result differs from that of its file if
    `at_least` makes it smaller.

    Raises:
        DataError: its file cannot be read, it has too many pixels, or its pixel type has no defined range.
        ResourceError: too little memory.
    """
    with decoding(name):
        if file := _unread_file(image, name, max_pixels):
            return load_image(file, max_pixels, at_least, value_range)
        with _lock:
            load_pixels(image)
            orientation = read_orientation(image)
        loaded = LoadedImage(image, None, value_range, profile_of(image, io.BytesIO()))
        return turn_upright(to_rgb(loaded, at_least), orientation)


def _unread_file(image: Image.Image, name: str, max_pixels: int) -> io.BytesIO | None:
    """The content of the file of an image that was only opened; None if it was loaded, or is another frame of it."""
    if not isinstance(image, ImageFile.ImageFile) or image.format not in (*FORMATS, "MPO"):
        return None
    with _lock:
        if not image.tile or image.fp is None or image.tell():
            return None
        position = image.fp.tell()
        image.fp.seek(0)
        file = io.BytesIO(image.fp.read())
        image.fp.seek(position)
    file.name = name  # for error messages
    opened = open_header(file, name, max_pixels)
    return file if (opened.size, opened.mode) == (image.size, image.mode) else None  # else it is a draft
