"""The one image loader: training, validation, prediction, serving and export all read photos through it.

What a photo is gets decided by its bytes, not by its suffix; only the decoders listed here ever run. No
setting of Pillow is touched: a cut-off photo is an error, never a photo with a grey lower half.
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

from flowers_torch.data.sources import tar_members
from flowers_torch.errors import DataError, printable

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # JPEG covers MPO: JPEGs in a row
IMAGE_SUFFIXES = frozenset(
    """.jpg .jpeg .jpe .jfif .mpo .png .apng .webp .bmp .dib .gif .tif .tiff .ppm .pgm .pbm .pnm
    .heic .heif .hif""".split()
)
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
# guard: D12
BACKGROUND = (255, 255, 255)  # what shows through transparent pixels, everywhere

# Pillow warns above this size and refuses above twice of it; a warning is too late for 268 MB of memory.
MAX_PIXELS = 89_478_485

# How to turn a stored photo upright, by the value of EXIF tag 274; 1 is upright already.
ORIENTATION_TAG = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# `warnings.catch_warnings` swaps process-wide state: two threads inside it would restore each other's.
_quiet_lock = threading.Lock()


def load_image(
    source: str | os.PathLike[str] | IO[bytes], max_pixels: int = MAX_PIXELS, at_least: int = 0
) -> Image.Image:
    """Reads a photo as upright 8-bit RGB.

    Transparency is laid on white, 16-bit grey is scaled (not clipped), CMYK and palettes are converted,
    of an animation or a multi-page file the first picture counts. Any side lengths are accepted; a 1x10000
    strip is a valid photo here, and for the check to complain about.

    Args:
        source: Path, or a binary file that can seek.
        max_pixels: Width times height above which the photo is refused before it is decoded.
        at_least: Pixels of the shorter side that are enough; 0 for all there are. A JPEG with twice as many
            comes at a half, a quarter or an eighth of its size, as its decoder makes it several times sooner.

    Returns:
        An image of mode "RGB" that holds no open file.

    Raises:
        DataError: with the path: missing, unreadable, no regular file, not an image of an accepted format,
            cut off, damaged, too large, or of a pixel type that has no defined range.
    """
    if not isinstance(source, str | os.PathLike):
        return _decode(source, printable(getattr(source, "name", None) or "the image"), max_pixels, at_least)
    with open_regular(source) as file:
        return _decode(file, printable(source), max_pixels, at_least)


@contextmanager
def open_regular(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Opens a regular file for reading; a pipe or device is refused unopened, because opening could block.

    The path may lead into a tar archive; see `tar_members.py`.

    Raises:
        DataError: missing, unreadable, or no regular file.
    """
    try:
        file: IO[bytes]
        if inside := tar_members.split_path(Path(path)):
            file = tar_members.open_member(*inside)
        else:
            mode = os.stat(path).st_mode
            if not stat.S_ISREG(mode):  # guard: D26 open
                kind = "a folder" if stat.S_ISDIR(mode) else "no regular file"
                raise DataError(f"cannot read {printable(path)}: it is {kind}", "remove it or name a photo")
            file = open(path, "rb")
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(
            f"cannot read {printable(path)}: {reason}", "check the path and its rights"
        ) from error
    with file:
        yield file


def open_header(file: IO[bytes], name: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Identifies a photo and checks its size, without decoding a pixel; `name` is for the errors."""
    file.seek(0)
    start = file.read(64)
    if not start:  # guard: D09
        raise DataError(f"{name} is empty (0 bytes)", "replace or remove it")
    formats: tuple[str, ...] = FORMATS
    if start[4:8] == b"ftyp" and start[8:12] in HEIF_BRANDS:
        formats = _heif(name)
    try:
        with _quiet():
            image = Image.open(file, formats=formats)  # guard: D14
    except UnidentifiedImageError as error:
        raise DataError(
            f"{name} is not an image of an accepted format: it {_describe(start)}",
            f"convert it to JPEG or PNG, or remove it (accepted: {', '.join(FORMATS)})",
        ) from error
    except Image.DecompressionBombError as error:
        raise _too_large(name, "more than twice", max_pixels) from error
    except Exception as error:
        # Strangers' bytes make Pillow's parsers raise anything: SyntaxError, struct.error, KeyError, ...
        raise _damaged(name, error) from error
    if image.width * image.height > max_pixels:  # guard: D13
        raise _too_large(name, f"{image.width}x{image.height}", max_pixels)
    return image


def _heif(name: str) -> tuple[str, ...]:
    """The format of iPhones' photos, which an optional package adds to Pillow."""
    try:
        import pillow_heif
    except ImportError as error:
        raise DataError(
            f'{name} is a HEIC photo; reading those takes pip install "flowers-torch[heic]"',
            "install that, or convert it to JPEG",
        ) from error
    pillow_heif.register_heif_opener()
    return ("HEIF",)


def _decode(file: IO[bytes], name: str, max_pixels: int, at_least: int) -> Image.Image:
    image = open_header(file, name, max_pixels)
    try:
        if at_least:
            image.draft(None, (at_least, at_least))  # formats other than JPEG leave it at that
        if image.format == "PNG":  # guard: D11
            _check_png(file)
        if image.format == "TIFF":  # remarks on its tags come as late as this
            with _quiet():
                image.load()
        image.load()  # guard: D10
        orientation = read_orientation(image)  # after loading: PNG may store it behind the pixels
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
        flat = Image.new("RGBA", rgba.size, (*BACKGROUND, 255))
        return Image.alpha_composite(flat, rgba).convert("RGB")
    if image.mode == "LAB":  # needs a colour profile that says which white is meant
        raise DataError("has the pixel type LAB, which is not supported")
    # A copy, because an opened image keeps its file; `convert` makes one unless the mode is RGB already.
    return image.copy() if image.mode == "RGB" else image.convert("RGB")  # guard: D16


def _to_8_bits(image: Image.Image) -> Image.Image:
    """16-bit grey as 8-bit grey: value / 257. Pillow's own conversion would clip everything above 255."""
    if image.mode == "F":  # guard: D18
        raise DataError("has floating-point pixels, whose range is not defined")
    values = np.asarray(image).astype(np.int64)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise DataError(f"has pixel values from {low} to {high}, outside of 16 bits")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))  # guard: D15


def read_orientation(image: Image.Image) -> int:
    """How a photo lies: 1 upright, else a key of `UPRIGHT`; from 5 on its width and height are swapped."""
    try:
        with _quiet():
            return int(image.getexif().get(ORIENTATION_TAG, 1))
    # guard: D21
    except Exception:  # malformed EXIF fails in as many ways as there are parsers; the pixels are good
        return 1


def _check_png(file: IO[bytes]) -> None:
    """Walks the chunks of a PNG: Pillow neither checks the CRCs of pixel data nor misses the end chunk.

    Raises:
        ValueError: a wrong checksum or a missing end.
    """
    place = file.tell()
    file.seek(8)
    kind = b""
    while kind != b"IEND":
        head = file.read(8)
        if len(head) < 8:
            raise ValueError("it ends before its end chunk")
        length, kind = struct.unpack(">I4s", head)
        crc = zlib.crc32(kind)
        while length and (data := file.read(min(length, 1 << 20))):  # a lying length must not allocate
            crc, length = zlib.crc32(data, crc), length - len(data)
        if file.read(4) != struct.pack(">I", crc):
            raise ValueError(f"checksum of its {printable(kind.decode('latin-1'))} chunk does not match")
    file.seek(place)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Pillow's remarks on odd metadata out of the user's terminal. Brief use only: it locks."""
    with _quiet_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _too_large(name: str, size: str, max_pixels: int) -> DataError:
    return DataError(
        f"{name} is too large: {size}, at most {max_pixels:,} pixels", "make it smaller or remove it"
    )


def _damaged(name: str, error: Exception) -> DataError:
    reason = printable(" ".join(str(error).split()) or type(error).__name__)
    return DataError(f"{name} is cut off or damaged: {reason}", "replace or remove it")


def _describe(start: bytes) -> str:
    kinds = {
        (b"<!DOCTYPE", b"<!doctype", b"<html", b"<HTML", b"<head"): "holds a web page",
        (b"<svg", b"<?xml"): "holds SVG or XML",
        (b"%PDF",): "holds a PDF",
        (b"%!PS", b"\xc5\xd0\xd3\xc6"): "holds PostScript",
        (b"8BPS",): "holds a Photoshop file",
        (b"PK",): "holds a zip archive",
        (b"\x1f\x8b",): "holds a gzip archive",
        (b"version https://git-lfs",): "holds a Git LFS pointer (fetch it with `git lfs pull`)",
    }
    if start[4:8] == b"ftyp":
        brand = start[8:12].decode("latin-1")
        return "holds AVIF" if brand.startswith("avi") else f"holds a video or the like ({printable(brand)})"
    start = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    # guard: D08
    return next((text for heads, text in kinds.items() if start.startswith(heads)), "holds something else")


def is_image_name(name: str | Path) -> bool:
    """Whether a file's suffix, in any case, is one under which photos of the accepted formats are kept."""
    return os.path.splitext(str(name))[1].lower() in IMAGE_SUFFIXES  # guard: D07
