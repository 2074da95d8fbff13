"""Pixels of more than 8 bits: the range of values that a set uses, and how it becomes 0..255.

A file of 16 bits often holds 10, 12 or 14, and floats have no range at all. What a set uses is found by its inspection
and stored in `Preprocessing.value_range`, so that every photo is scaled like those of training.
"""

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from flowers_torch.log import log

Range = tuple[float, ...]  # the values that become 0 and 255; empty if not known
FULL: Range = (0.0, 65535.0)
STRIP_PIXELS = 1 << 20  # measured at a time
# Pillow reads only the high bytes of colors with 16 bits. Read with the other byte order, it reads the low bytes.
_NATIVE = {"little": "B", "big": "L"}[sys.byteorder]
LOW_BYTES = {
    f"{mode};16{a}": f"{mode};16{b}"
    for mode in ("RGB", "RGBA", "RGBX")
    for a, b in (("B", "L"), ("L", "B"), ("N", _NATIVE))
}
LOW_BYTES["LA;16B"] = "RGBA"  # both bytes of both channels


class Values(NamedTuple):
    """What the pixels of an image hold."""

    kind: str  # "int" or "float"; empty for 8 bits, which have a range of their own
    smallest: float
    largest: float  # of colors, up to 255 too large


EIGHT_BITS = Values("", 0.0, 0.0)


def is_deep(image: Image.Image) -> bool:
    """Whether the pixels of an opened image, before it is loaded, have more than 8 bits and no range of their own."""
    if image.format == "PPM" and image.mode != "F":
        return False  # Pillow scales by the largest value that the file states
    return is_deep_gray(image) or has_low_bytes(image)


def is_deep_gray(image: Image.Image) -> bool:
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def has_low_bytes(image: Image.Image) -> bool:
    """Whether an opened image has colors of 16 bits, of which Pillow reads the high bytes."""
    tiles = getattr(image, "tile", [])
    return bool(tiles) and all(_raw_mode(tile) in LOW_BYTES for tile in tiles)


def load_low_bytes(image: Any, load: Callable[[Image.Image], None]) -> Image.Image:
    """Loads the low bytes of an opened image's colors."""
    is_gray, tiles = _raw_mode(image.tile[0]) == "LA;16B", []
    for codec, extents, offset, args in image.tile:
        raw = LOW_BYTES[args if isinstance(args, str) else args[0]]
        tiles.append((codec, extents, offset, raw if isinstance(args, str) else (raw, *args[1:])))
    image.tile = tiles
    load(image)
    found: Image.Image = Image.merge("RGB", [image.getchannel("G")] * 3) if is_gray else image
    return found


def _raw_mode(tile: Any) -> str:
    args = tile[3]
    return args if isinstance(args, str) else args[0] if isinstance(args, tuple | list) and args else ""


def measure(image: Image.Image) -> Values:
    """The extremes of a loaded image for which `is_deep` holds."""
    if not is_deep_gray(image):
        high = max(int(image.getchannel(name).getextrema()[1]) for name in image.getbands()[:3])  # type: ignore[arg-type]
        return Values("int", 0.0, 256.0 * high + 255)
    kind, lows, highs = "float" if image.mode == "F" else "int", [], []
    for strip in _strips(image):
        values = np.asarray(strip)
        values = values[np.isfinite(values)]
        if values.size:
            lows.append(float(values.min()))
            highs.append(float(values.max()))
    if not lows:
        raise ValueError("none of its pixels is a finite number")
    return Values(kind, min(lows), max(highs))


def _strips(image: Image.Image) -> Iterator[Image.Image]:
    rows = max(1, STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        yield image.crop((0, top, image.width, min(top + rows, image.height)))


def range_of(values: Values) -> Range:
    """The range of images with these extremes: 8, 10, 12, 14 or 16 bits where they can be meant."""
    kind, smallest, largest = values
    if not kind:
        return ()
    if kind == "int" and smallest >= 0 and largest <= FULL[1]:
        bits = max(8, int(largest).bit_length())
        return 0.0, float((1 << bits + bits % 2) - 1)
    low = min(smallest, 0.0)
    if kind == "float" and low == 0 and 0.5 < largest <= 1:
        return 0.0, 1.0
    return low, largest if largest > low else low + 1


def range_of_set(images: Sequence[Values]) -> Range:
    """The range that the images of more than 8 bits use together; empty if there are none."""
    deep = [values for values in images if values.kind]
    if not deep:
        return ()
    kind = "int" if all(values.kind == "int" for values in deep) else "float"
    return range_of(Values(kind, min(v.smallest for v in deep), max(v.largest for v in deep)))


def to_8_bits(image: Image.Image, value_range: Range, inverted: bool = False) -> Image.Image:
    """Gray pixels in mode I, I;16 or F as 8-bit gray. Pillow's own conversion clips everything above 255.

    Args:
        inverted: Whether the smallest value is white.
    """
    values = np.asarray(image)
    if not value_range:
        if image.mode == "F":  # guard: D18
            raise ValueError("it has floating-point pixels, and the range of their values is not known")
        low, high = int(values.min()), int(values.max())
        if low < 0 or high > FULL[1]:
            raise ValueError(f"it has pixel values from {low} to {high}, outside of 16 bits")
    return Image.fromarray(_scaled(values, value_range or FULL, inverted))  # guard: D15


def join_bytes(high: Image.Image, low: Image.Image, value_range: Range) -> Image.Image:
    """Colors of 16 bits, as high and low bytes, as 8-bit colors; transparency is that of the high bytes."""
    colors = np.asarray(high)[..., :3].astype(np.int32) * 256
    colors += np.asarray(low)[..., :3]
    image = Image.fromarray(_scaled(colors, value_range, False))
    if high.mode == "RGBA":
        image.putalpha(high.getchannel("A"))
    return image


def _scaled(values: np.ndarray, value_range: Range, inverted: bool) -> np.ndarray:
    low, high = value_range
    with np.errstate(invalid="ignore"):  # signaling NaNs
        numbers = np.nan_to_num(values.astype(np.float64), nan=low, posinf=high, neginf=low)
    if numbers.size and (numbers.max() > high or numbers.min() < low):
        _warn_of_clipping(value_range)  # guard: D15 clipped
    levels = ((numbers - low) * (255 / (high - low))).round().clip(0, 255).astype(np.uint8)
    return 255 - levels if inverted else levels


@functools.cache
def _warn_of_clipping(value_range: Range) -> None:
    """Once in a process."""
    text = describe(value_range)
    log.warning(
        f"note     a photo has pixel values outside of {text}, the range of the training photos; they are clipped"
    )


def describe(value_range: Range) -> str:
    """A range in words."""
    low, high = value_range
    return f"{low:g} .. {high:g}" if abs(high) < 1e6 else f"{low:.6g} .. {high:.6g}"
