"""The image loader: the bytes of a file decide its format, not its suffix, and only the decoders listed here run.

Pillow's global settings stay as they are: a truncated file is an error, never an image with a gray lower half.
"""

import os
import stat
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, UnidentifiedImageError

from flowers_torch.data import tar_members
from flowers_torch.errors import DataError, one_line, printable

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
# Pillow warns above this size and raises above twice this size. A warning is too late for 268 MB of memory.
MAX_PIXELS = 89_478_485

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
# `warnings.catch_warnings` changes process-wide state, so only one thread may use it at a time.
_quiet_lock = threading.Lock()


def load_image(
    source: str | os.PathLike[str] | IO[bytes], max_pixels: int = MAX_PIXELS, at_least: int = 0
) -> Image.Image:
    """Reads the image at a path, or in a binary file that can seek, as upright 8-bit RGB of any side lengths.

    Transparency becomes white, 16-bit gray is scaled, CMYK and palettes are converted, and the first frame of
    an animation is taken.

    Args:
        max_pixels: Limit of width times height, checked before decoding.
        at_least: Sufficient length of the shorter side in pixels; 0 for full size. A JPEG of twice that
            length or more is decoded at 1/2, 1/4 or 1/8 of its size, several times faster.

    Raises:
        DataError: not a readable regular file of an accepted format, truncated, damaged, too large, or a pixel
            type without a defined range.
    """
    if not isinstance(source, str | os.PathLike):
        return _decode(source, printable(getattr(source, "name", None) or "the image"), max_pixels, at_least)
    with open_regular(source) as file:
        return _decode(file, printable(source), max_pixels, at_least)


@contextmanager
def open_regular(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Opens a regular file, or a member of a tar archive; anything else is a `DataError`. Pipes could block."""
    try:
        file: IO[bytes]
        if inside := tar_members.split_path(Path(path)):
            file = tar_members.open_member(*inside)
        else:
            mode = os.stat(path).st_mode
            if not stat.S_ISREG(mode):  # guard: D26 open
                kind = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
                raise DataError(f"cannot read {printable(path)}: it is {kind}", "remove it or name a photo")
            file = open(path, "rb")
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"cannot read {printable(path)}: {reason}", "check the path and its access rights") from error
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
    try:
        with _quiet():
            image = Image.open(file, formats=formats)  # guard: D14
    except UnidentifiedImageError as error:
        fix = f"convert it to JPEG or PNG, or remove it (accepted: {', '.join(FORMATS)})"
        raise DataError(f"{name} is not an image of an accepted format: it {_describe(start)}", fix) from error
    except Image.DecompressionBombError as error:
        raise _too_large(name, "more than twice the limit", max_pixels) from error
    except Exception as error:  # damaged bytes make Pillow raise SyntaxError, struct.error, KeyError, ...
        raise _damaged(name, error) from error
    if image.width * image.height > max_pixels:  # guard: D13
        raise _too_large(name, f"{image.width}x{image.height}", max_pixels)
    return image


def _register_heif(name: str) -> None:
    try:
        import pillow_heif
    except ImportError as error:
        what = f'{name} is a HEIC photo, which needs pip install "flowers-torch[heic]"'
        raise DataError(what, "install that, or convert it to JPEG") from error
    pillow_heif.register_heif_opener()


def _decode(file: IO[bytes], name: str, max_pixels: int, at_least: int) -> Image.Image:
    image = open_header(file, name, max_pixels)
    try:
        if at_least:
            image.draft(None, (at_least, at_least))  # affects JPEG only
        if image.format == "PNG":  # guard: D11
            _check_png(file)
        if image.format == "TIFF":  # Pillow warns of its tags during loading
            with _quiet():
                image.load()
        image.load()  # guard: D10
        orientation = read_orientation(image)  # after loading: a PNG may store it behind the pixels
        rgb = _to_rgb(image)
    except DataError as error:
        raise DataError(f"{name} {error}", "convert it to 8-bit JPEG or PNG, or remove it") from error
    except Exception as error:
        raise _damaged(name, error) from error
    return rgb.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else rgb  # guard: D20


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _to_8_bits(image)
    if image.has_transparency_data or image.mode in ("La", "RGBa"):  # guard: D17, D17 palette
        if image.mode == "La":
            image = image.convert("LA")
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, (*BACKGROUND, 255)), rgba).convert("RGB")
    if image.mode == "LAB":  # its white point would need a color profile
        raise DataError("has the pixel type LAB, which is not supported")
    # An opened image keeps its file. `copy` and a real conversion do not.
    return image.copy() if image.mode == "RGB" else image.convert("RGB")  # guard: D16


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Scales 16-bit gray by 1/257. Pillow's own conversion clips everything above 255."""
    if image.mode == "F":  # guard: D18
        raise DataError("has floating-point pixels, whose range is not defined")
    values = np.asarray(image).astype(np.int64)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise DataError(f"has pixel values from {low} to {high}, outside of 16 bits")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))  # guard: D15


def read_orientation(image: Image.Image) -> int:
    """EXIF orientation: 1 is upright, else a key of `UPRIGHT`. From 5 on, width and height are swapped."""
    try:
        with _quiet():
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


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences Pillow's warnings of odd metadata, one thread at a time."""
    with _quiet_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _too_large(name: str, size: str, max_pixels: int) -> DataError:
    return DataError(f"{name} is too large: {size}, at most {max_pixels:,} pixels", "make it smaller or remove it")


def _damaged(name: str, error: Exception) -> DataError:
    return DataError(f"{name} is cut off or damaged: {one_line(error) or type(error).__name__}", "replace or remove it")


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
