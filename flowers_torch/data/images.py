"""The image loader: the bytes of a file decide its format, not its suffix, and only the decoders listed here run.

Pillow's global settings stay as they are: a truncated file is an error, never an image with a gray lower half.
"""

import ctypes
import functools
import logging
import os
import struct
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import IO, TypeVar

from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from flowers_torch.data import jpeg, png, tar_members, webp
from flowers_torch.data.color import profile_of
from flowers_torch.data.pixel_budget import hold_pixels
from flowers_torch.data.pixels import LoadedImage, to_rgb
from flowers_torch.data.value_range import (
    EIGHT_BITS,
    FULL,
    Range,
    Values,
    has_low_bytes,
    is_deep,
    load_low_bytes,
    measure,
)
from flowers_torch.errors import DataError, printable
from flowers_torch.files.reading import reading, require_regular

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "BMP", "GIF", "TIFF", "PPM")  # JPEG includes MPO
SUFFIXES = {
    "JPEG": ".jpg .jpeg .jpe .jfif .mpo",
    "PNG": ".png .apng",
    "TIFF": ".tif .tiff",
    "PPM": ".ppm .pgm .pbm .pnm",
    "BMP": ".bmp .dib",
    "GIF": ".gif",
    "WEBP": ".webp",
    "AVIF": ".avif",
    "HEIF": ".heic .heif .hif",
    "JPEG XL": ".jxl",  # is named with what to do
}
IMAGE_SUFFIXES = frozenset(" ".join(SUFFIXES.values()).split())
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
# Pillow warns above this size and raises above twice this size. A warning is too late for 358 MB of memory.
MAX_PIXELS = 89_478_485
# A pixel counts as several where a decoder takes several times 4 bytes for it.
PIXEL_WEIGHT = {"WEBP": 3.3, "AVIF": 3.3}

ORIENTATION_TAG = 0x0112
# The transposition that turns an image upright, by EXIF orientation; 1 is upright already.
TURNS = "FLIP_LEFT_RIGHT ROTATE_180 FLIP_TOP_BOTTOM TRANSPOSE ROTATE_270 TRANSVERSE ROTATE_90"
UPRIGHT = {orientation: Image.Transpose[name] for orientation, name in enumerate(TURNS.split(), 2)}
# The first bytes of files that people mistake for images.
OTHER_CONTENT = {
    (b"<!DOCTYPE", b"<!doctype", b"<html", b"<HTML", b"<head"): "holds a web page",
    (b"<svg", b"<?xml"): "holds SVG or XML",
    (b"%PDF",): "holds a PDF",
    (b"%!PS", b"\xc5\xd0\xd3\xc6"): "holds PostScript",
    (b"8BPS",): "holds a Photoshop file",
    (b"PK",): "holds a zip archive",
    (b"\x1f\x8b",): "holds a gzip archive",
    (b"version https://git-lfs",): "holds a Git LFS pointer (fetch it with `git lfs pull`)",
    (b"\xff\x0a", b"\0\0\0\x0cJXL "): "holds JPEG XL (convert it with `djxl PHOTO.jxl PHOTO.png`)",
    (b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51"): "holds JPEG 2000",
}
USABLE = ("a usable image", "replace it, or convert it to 8-bit JPEG or PNG")
T = TypeVar("T")
# `warnings.catch_warnings` changes process-wide state, so only one thread may use it at a time.
_quiet_lock = threading.Lock()
logging.getLogger("PIL").addHandler(
    logging.NullHandler()
)  # else errors go to the terminal of a program without logging
_libtiff_errors: set[int] = set()  # threads in which libtiff met an error


def load_image(
    source: str | os.PathLike[str] | IO[bytes],
    max_pixels: int = MAX_PIXELS,
    at_least: int = 0,
    value_range: Range = (),
) -> Image.Image:
    """Reads the image at a path, or in a binary file that can seek, as upright 8-bit sRGB of any side lengths.

    Color profiles are applied, transparency becomes white, CMYK and palettes are converted, and the first frame of
    an animation is taken. Decoding takes at most 9 bytes a pixel, or 5 where `at_least` makes the result smaller.
    Some decoders take more: 2 bytes for each channel of a progressive JPEG, 3 for a TIFF of one strip, 4 for colors
    of 16 bits that use fewer, and 18 in all for WebP and AVIF, of which 30% of the pixels are accepted.

    Args:
        max_pixels: Limit of the pixels that are decoded, checked before decoding. A JPEG of more pixels is decoded
            at 1/2, 1/4 or 1/8 of its size; a progressive one takes memory for all of them.
        at_least: Sufficient length of the shorter side in pixels; 0 for full size. A JPEG of twice that
            length or more is decoded at 1/2, 1/4 or 1/8 of its size, several times faster. Other images of
            over four megapixels are averaged over whole blocks of pixels. It never decides whether an image
            is accepted.
        value_range: `Preprocessing.value_range`, for images of more than 8 bits.

    Raises:
        DataError: not a readable regular file of an accepted format, truncated, damaged, too large, or a pixel
            type without a defined range.
        ResourceError: too little memory.
    """
    read = functools.partial(_decode, max_pixels=max_pixels, at_least=at_least, value_range=value_range)
    return _with_file(source, read)


def measure_values(source: str | os.PathLike[str] | IO[bytes], max_pixels: int = MAX_PIXELS) -> Values:
    """The extremes of an image's pixels, if it has more than 8 bits; arguments and errors as of `load_image`."""

    def read(file: IO[bytes], name: str) -> Values:
        image = open_header(file, name, max_pixels)
        if not is_deep(image):
            return EIGHT_BITS
        load_pixels(image)
        return measure(image)

    return _with_file(source, read)


def _with_file(source: str | os.PathLike[str] | IO[bytes], read: Callable[[IO[bytes], str], T]) -> T:
    if isinstance(source, str | os.PathLike):
        with open_regular(source, *USABLE) as file:
            return read(file, printable(source))
    name = getattr(source, "name", None) or "the image"
    with decoding(name):
        return read(source, printable(name))


def decoding(name: str) -> AbstractContextManager[None]:
    """Turns whatever the bytes of an image make Pillow raise into one of our errors; see `reading`."""
    return reading(name, USABLE[0], DataError, USABLE[1])


@contextmanager
def open_regular(
    path: str | os.PathLike[str], kind: str = "a whole file", fix: str = "use another copy"
) -> Iterator[IO[bytes]]:
    """Opens a regular file, or a member of a tar archive; anything else is a `DataError`. Pipes could block.

    Whatever reading it raises in the block becomes one of our errors; see `reading`.
    """
    with reading(path, kind, DataError, fix):  # guard: S9 read
        inside = tar_members.split_path(Path(path))
        if not inside:
            require_regular(path)  # guard: D26 open
        file: IO[bytes] = tar_members.open_member(*inside) if inside else open(path, "rb")
        with file:
            yield file


def open_header(file: IO[bytes], name: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Identifies an image and checks its size without decoding pixels; errors start with `name`."""
    file.seek(0)
    start = file.read(64)
    if not start:  # guard: D09
        raise DataError(f"{name} is empty (0 bytes)", "replace or remove it")
    formats: tuple[str, ...] = FORMATS
    if start[4:8] == b"ftyp" and start[8:12] in HEIF_BRANDS and not _is_avif(start):
        formats = ("HEIF",)
        _register_heif(name)
    if start[:4] == b"RIFF" and (size := webp.frame_size(start)):  # Pillow allocates the frame when it opens the file
        _check_size(name, *size, "WEBP", max_pixels)  # guard: S7 frame
    if start[:4] == b"\x89PNG":
        file = png.without_large_text(file)
    image = _identify(file, start, formats, name)
    if isinstance(image, JpegImageFile):
        fewest = jpeg.fewest_pixels(file, image, max_pixels)
        if fewest > max_pixels:  # guard: S7 held
            fix = "save it as a JPEG that is not progressive, or make it smaller"
            raise _too_large(name, f"{image.width}x{image.height} in a JPEG that is held whole", max_pixels, fix)
    else:
        _check_size(name, image.width, image.height, image.format or "", max_pixels)
    return image


def _identify(file: IO[bytes], start: bytes, formats: tuple[str, ...], name: str) -> Image.Image:
    """Like `Image.open`, which refuses large images by the size in their header."""
    fix = f"convert it to JPEG or PNG, or remove it (accepted: {', '.join(FORMATS)})"
    for kind in formats:  # guard: D14
        if kind not in Image.OPEN:
            Image.init()
        factory, accept = Image.OPEN.get(kind, (None, None))
        try:
            if factory and (accept is None or accept(start[:16]) is True):  # a text says what Pillow lacks
                file.seek(0)
                with quiet():
                    return factory(file, "")
        except (SyntaxError, IndexError, TypeError, struct.error) as error:
            if kind == "TIFF" and "unknown" in str(error):
                raise DataError(f"{name} is a TIFF image of a kind that is not read: {error}", fix) from error
    raise DataError(f"{name} is not an image of an accepted format: it {_describe(start)}", fix)


def _check_size(name: str, width: int, height: int, kind: str, max_pixels: int) -> None:
    max_pixels = int(max_pixels / PIXEL_WEIGHT.get(kind, 1))  # guard: S7 webp
    if width * height > max_pixels:  # guard: D13
        raise _too_large(
            name, f"{width}x{height}", max_pixels, "save it as JPEG, which may be larger, or make it smaller"
        )


def _register_heif(name: str) -> None:
    try:
        import pillow_heif
    except ImportError as error:
        what = f'{name} is a HEIC photo, which needs pip install "flowers-torch[heic]"'
        raise DataError(what, "install that, or convert it to JPEG") from error
    pillow_heif.register_heif_opener()


def _decode(
    file: IO[bytes], name: str, max_pixels: int = MAX_PIXELS, at_least: int = 0, value_range: Range = ()
) -> Image.Image:
    image = open_header(file, name, max_pixels)
    size, pixels = image.size, image.width * image.height * PIXEL_WEIGHT.get(image.format or "", 1)
    if image.format == "PNG":  # guard: D11
        png.check_chunks(file)
    if isinstance(image, JpegImageFile):
        if jpeg.count_scans(file) > jpeg.MAX_SCANS:  # guard: S7 scans
            raise ValueError(f"it has more than {jpeg.MAX_SCANS} scans")
        held = jpeg.held_pixels(file, image)
        jpeg.reduce(image, at_least, max_pixels)
        pixels = max(image.width * image.height, held)
    pixels *= 1 + _is_decoded_twice(image, value_range)
    is_reduced = image.size != size and at_least
    try:
        with hold_pixels(pixels, max_pixels):  # guard: S7 threads
            return _decode_opened(image, file, name, max_pixels, at_least, value_range)
    except Exception:  # guard: S11 reduced
        if not is_reduced:
            raise
    return _decode(file, name, max_pixels, 0, value_range)  # lossless JPEG has no reduced form


def _decode_opened(
    image: Image.Image, file: IO[bytes], name: str, max_pixels: int, at_least: int, value_range: Range
) -> Image.Image:
    profile, low = profile_of(image, file), None
    if _is_decoded_twice(image, value_range):
        _check_size(name, *image.size, "", max_pixels // 2)  # guard: S7 bytes
        low = load_low_bytes(open_header(file, name, max_pixels), load_pixels)
    load_pixels(image)
    orientation = read_orientation(image)  # after loading: a PNG may store it behind the pixels
    image = to_rgb(LoadedImage(image, low, value_range, profile), at_least)
    return turn_upright(image, orientation)  # guard: D20


def _is_decoded_twice(image: Image.Image, value_range: Range) -> bool:
    """Whether the low bytes of its colors are decoded too."""
    return value_range not in ((), FULL) and has_low_bytes(image)


def turn_upright(image: Image.Image, orientation: int) -> Image.Image:
    """An image by its EXIF orientation; the image itself does not change."""
    if orientation not in UPRIGHT:
        return image
    turned = image.transpose(UPRIGHT[orientation])
    turned.info.clear()  # it says how the file's pixels lie; who reads it again would turn them again
    return turned


def load_pixels(image: Image.Image) -> None:
    """`Image.load`, where damage is an error in every format."""
    if image.format == "TIFF":
        with quiet():  # Pillow warns of its tags during loading
            _catch_libtiff_errors()
            _libtiff_errors.discard(threading.get_ident())
            image.load()
            if threading.get_ident() in _libtiff_errors:  # guard: S11 libtiff
                raise ValueError("libtiff reports damage")
    image.load()  # guard: D10


@functools.cache
def _catch_libtiff_errors() -> None:
    """libtiff prints errors to the terminal, and continues after some of them, unless it has this handler."""
    with suppress(OSError, AttributeError):  # Pillow without libtiff, or linked with it statically
        ctypes.CDLL(Image.core.__file__).TIFFSetErrorHandler(_on_libtiff_error)  # guard: S11 quiet


@ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 3)
def _on_libtiff_error(*_: object) -> None:
    _libtiff_errors.add(threading.get_ident())


def read_orientation(image: Image.Image) -> int:
    """EXIF orientation: 1 is upright, else a key of `UPRIGHT`. From 5 on, width and height are swapped."""
    try:
        with quiet():
            return int(image.getexif().get(ORIENTATION_TAG, 1))
    # guard: D21
    except Exception:  # malformed EXIF can raise anything; the pixels are still good
        return 1


@contextmanager
def quiet() -> Iterator[None]:
    """Silences Pillow's warnings of odd metadata, one thread at a time."""
    with _quiet_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _too_large(name: str, size: str, max_pixels: int, fix: str) -> DataError:
    return DataError(f"{name} is too large: {size}, at most {max_pixels:,} pixels", fix)


def _is_avif(start: bytes) -> bool:
    """Whether the brands of an ISO media file, of which the first may be a common one, name AVIF."""
    brands = start[8 : int.from_bytes(start[:4], "big")]
    return b"avif" in [brands[at : at + 4] for at in range(0, len(brands), 4)]


def _describe(start: bytes) -> str:
    if start[4:8] == b"ftyp":
        brand = start[8:12].decode("latin-1")
        return (
            "holds AVIF, which this Pillow cannot read (update it: pip install -U pillow)"
            if brand.startswith("avi")
            else f"holds a video or similar ({printable(brand)})"
        )
    start = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    # guard: D08
    return next((t for heads, t in OTHER_CONTENT.items() if start.startswith(heads)), "holds something else")


def is_image_name(name: str | Path) -> bool:
    """Whether a file name has the suffix of an accepted format, in any case."""
    return os.path.splitext(str(name))[1].lower() in IMAGE_SUFFIXES  # guard: D07
