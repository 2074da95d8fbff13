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
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, UnidentifiedImageError

from flowers_torch.data import tar_members
from flowers_torch.errors import DataError, printable
from flowers_torch.files.reading import reading, require_regular

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # JPEG includes MPO
SUFFIXES = {
    "JPEG": ".jpg .jpeg .jpe .jfif .mpo",
    "PNG": ".png .apng",
    "TIFF": ".tif .tiff",
    "PPM": ".ppm .pgm .pbm .pnm",
    "BMP": ".bmp .dib",
    "GIF": ".gif",
    "WEBP": ".webp",
    "HEIF": ".heic .heif .hif",
}
IMAGE_SUFFIXES = frozenset(" ".join(SUFFIXES.values()).split())
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
# guard: D12
BACKGROUND = (255, 255, 255)  # behind transparent pixels
# Pillow warns above this size and raises above twice this size. A warning is too late for 358 MB of memory.
MAX_PIXELS = 89_478_485
PIXEL_WEIGHT = {"WEBP": 3}  # a pixel counts as several where a decoder takes several times 4 bytes for it
STRIP_PIXELS = 1 << 20  # of an image of more than four times as many, converted at a time
MAX_SCANS = 100  # of a JPEG; each is a pass over all pixels, and common encoders write up to 16

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
}
USABLE = ("a usable image", "replace it, or convert it to 8-bit JPEG or PNG")
# `warnings.catch_warnings` changes process-wide state, so only one thread may use it at a time.
_quiet_lock = threading.Lock()
logging.getLogger("PIL").addHandler(
    logging.NullHandler()
)  # else errors go to the terminal of a program without logging
_libtiff_errors: set[int] = set()  # threads in which libtiff met an error


def load_image(
    source: str | os.PathLike[str] | IO[bytes], max_pixels: int = MAX_PIXELS, at_least: int = 0
) -> Image.Image:
    """Reads the image at a path, or in a binary file that can seek, as upright 8-bit RGB of any side lengths.

    Transparency becomes white, 16-bit gray is scaled, CMYK and palettes are converted, and the first frame of
    an animation is taken. Decoding takes at most 9 bytes a pixel, or 5 where `at_least` makes the result smaller.
    Some decoders take more: 2 bytes for each channel of a progressive JPEG, 3 for a TIFF of one strip, and 18 in
    all for WebP, of which a third of the pixels is accepted.

    Args:
        max_pixels: Limit of width times height, checked before decoding.
        at_least: Sufficient length of the shorter side in pixels; 0 for full size. A JPEG of twice that
            length or more is decoded at 1/2, 1/4 or 1/8 of its size, several times faster. Other images of
            over four megapixels are averaged over whole blocks of pixels. It never decides whether an image
            is accepted.

    Raises:
        DataError: not a readable regular file of an accepted format, truncated, damaged, too large, or a pixel
            type without a defined range.
        ResourceError: too little memory.
    """
    if isinstance(source, str | os.PathLike):
        with open_regular(source, *USABLE) as file:
            return _decode(file, printable(source), max_pixels, at_least)
    name = getattr(source, "name", None) or "the image"
    with decoding(name):
        return _decode(source, printable(name), max_pixels, at_least)


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
    if start[4:8] == b"ftyp" and start[8:12] in HEIF_BRANDS:
        formats = ("HEIF",)
        _register_heif(name)
    if start[:4] == b"RIFF" and (size := _webp_size(start)):  # Pillow allocates the frame when it opens the file
        _check_size(name, *size, "WEBP", max_pixels)  # guard: S7 frame
    try:
        with quiet():
            image = Image.open(file, formats=formats)  # guard: D14
    except UnidentifiedImageError as error:
        fix = f"convert it to JPEG or PNG, or remove it (accepted: {', '.join(FORMATS)})"
        raise DataError(f"{name} is not an image of an accepted format: it {_describe(start)}", fix) from error
    except Image.DecompressionBombError as error:
        raise _too_large(name, "more than twice the limit", max_pixels) from error
    _check_size(name, image.width, image.height, image.format or "", max_pixels)
    return image


def _check_size(name: str, width: int, height: int, kind: str, max_pixels: int) -> None:
    max_pixels //= PIXEL_WEIGHT.get(kind, 1)  # guard: S7 webp
    if width * height > max_pixels:  # guard: D13
        raise _too_large(name, f"{width}x{height}", max_pixels)


def _webp_size(start: bytes) -> tuple[int, int] | None:
    """Width and height in the header of a WebP file: extended, lossless or lossy."""
    kind, sides = start[12:16], int.from_bytes(start[21:25], "little")
    if kind == b"VP8X":
        return 1 + int.from_bytes(start[24:27], "little"), 1 + int.from_bytes(start[27:30], "little")
    if kind == b"VP8L":
        return 1 + (sides & 0x3FFF), 1 + (sides >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        return int.from_bytes(start[26:28], "little") & 0x3FFF, int.from_bytes(start[28:30], "little") & 0x3FFF
    return None


def _register_heif(name: str) -> None:
    try:
        import pillow_heif
    except ImportError as error:
        what = f'{name} is a HEIC photo, which needs pip install "flowers-torch[heic]"'
        raise DataError(what, "install that, or convert it to JPEG") from error
    pillow_heif.register_heif_opener()


def _decode(file: IO[bytes], name: str, max_pixels: int, at_least: int) -> Image.Image:
    image = open_header(file, name, max_pixels)
    size = image.size
    if image.format == "PNG":  # guard: D11
        _check_png(file)
    if image.format in ("JPEG", "MPO") and _count_scans(file) > MAX_SCANS:  # guard: S7 scans
        raise ValueError(f"it has more than {MAX_SCANS} scans")
    if at_least:
        image.draft(None, (at_least, at_least))  # affects JPEG only
    try:
        _load(image)
    except Exception:  # guard: S11 reduced
        if image.size == size:
            raise
        return _decode(file, name, max_pixels, 0)  # lossless JPEG has no reduced form
    orientation = read_orientation(image)  # after loading: a PNG may store it behind the pixels
    image = _to_small_rgb(image, at_least)
    return image.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else image  # guard: D20


def _load(image: Image.Image) -> None:
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


def _to_small_rgb(image: Image.Image, at_least: int) -> Image.Image:
    """Converts in strips, because each conversion makes copies, and reduces what is larger than necessary."""
    width, height = image.size
    if width * height <= 4 * STRIP_PIXELS:  # guard: S7 strips
        return _to_rgb(image)
    factor = max(1, min(width, height) // at_least) if at_least else 1
    rows = max(1, STRIP_PIXELS // width // factor) * factor
    whole = Image.new("RGB", (-(-width // factor), -(-height // factor)))
    for top in range(0, height, rows):
        strip = _to_rgb(image.crop((0, top, width, min(top + rows, height))))
        whole.paste(strip.reduce(factor) if factor > 1 else strip, (0, top // factor))
    return whole


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _to_8_bits(image)
    if image.has_transparency_data or image.mode in ("La", "RGBa"):  # guard: D17, D17 palette
        if image.mode == "La":
            image = image.convert("LA")
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, (*BACKGROUND, 255)), rgba).convert("RGB")
    if image.mode == "LAB":  # its white point would need a color profile
        raise ValueError("it has the pixel type LAB, which is not supported")
    # An opened image keeps its file. `copy` and a real conversion do not.
    return image.copy() if image.mode == "RGB" else image.convert("RGB")  # guard: D16


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Scales 16-bit gray by 1/257. Pillow's own conversion clips everything above 255."""
    if image.mode == "F":  # guard: D18
        raise ValueError("it has floating-point pixels, whose range is not defined")
    values = np.asarray(image).astype(np.int64)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise ValueError(f"it has pixel values from {low} to {high}, outside of 16 bits")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))  # guard: D15


def read_orientation(image: Image.Image) -> int:
    """EXIF orientation: 1 is upright, else a key of `UPRIGHT`. From 5 on, width and height are swapped."""
    try:
        with quiet():
            return int(image.getexif().get(ORIENTATION_TAG, 1))
    # guard: D21
    except Exception:  # malformed EXIF can raise anything; the pixels are still good
        return 1


def _check_png(file: IO[bytes]) -> None:
    """Checks the CRCs and the end chunk of a PNG; Pillow ignores both."""
    position = file.tell()
    file.seek(8)
    kind = b""
    while kind != b"IEND":
        head = file.read(8)
        if len(head) < 8:
            raise ValueError("it ends before its end chunk")
        length, kind = struct.unpack(">I4s", head)
        crc = zlib.crc32(kind)
        while length and (data := file.read(min(length, 1 << 20))):  # the stated length may be false
            crc, length = zlib.crc32(data, crc), length - len(data)
        if file.read(4) != struct.pack(">I", crc):
            raise ValueError(f"checksum of its {printable(kind.decode('latin-1'))} chunk does not match")
    file.seek(position)


def _count_scans(file: IO[bytes]) -> int:
    """The number of scans of a JPEG, or a little more; a few bytes can stand for a pass over all pixels."""
    position = file.tell()
    file.seek(0)
    scans = sum(chunk.count(b"\xff\xda") for chunk in iter(lambda: file.read(1 << 20), b""))
    file.seek(position)
    return scans


@contextmanager
def quiet() -> Iterator[None]:
    """Silences Pillow's warnings of odd metadata, one thread at a time."""
    with _quiet_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _too_large(name: str, size: str, max_pixels: int) -> DataError:
    return DataError(f"{name} is too large: {size}, at most {max_pixels:,} pixels", "make it smaller or remove it")


def _describe(start: bytes) -> str:
    if start[4:8] == b"ftyp":
        brand = start[8:12].decode("latin-1")
        return "holds AVIF" if brand.startswith("avi") else f"holds a video or similar ({printable(brand)})"
    start = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    # guard: D08
    return next((t for heads, t in OTHER_CONTENT.items() if start.startswith(heads)), "holds something else")


def is_image_name(name: str | Path) -> bool:
    """Whether a file name has the suffix of an accepted format, in any case."""
    return os.path.splitext(str(name))[1].lower() in IMAGE_SUFFIXES  # guard: D07
