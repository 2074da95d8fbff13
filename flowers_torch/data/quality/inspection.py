"""Inspection of one image: whether it can be read, its format, size and hashes.

As a program, it is the worker of `scan.py`, so that a decoder that crashes costs one image. It never imports torch.
"""

import dataclasses
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageStat

from flowers_torch.data.images import (
    USABLE,
    load_image,
    measure_values,
    open_header,
    open_regular,
    quiet,
    read_orientation,
)
from flowers_torch.data.value_range import EIGHT_BITS, Values, is_deep, range_of
from flowers_torch.errors import FlowersError, ResourceError, printable

HASH_SIDE = 32  # of the image that the perceptual hash is computed from
# Rows of the type-II cosine transform (9, HASH_SIDE).
COSINES = np.cos(np.arange(9)[:, None] * (np.arange(HASH_SIDE) + 0.5) * np.pi / HASH_SIDE).astype(np.float32)
MEASURE_SIDE = 300  # approximate longer side (225 .. 450) for measuring sharpness


@dataclasses.dataclass(frozen=True, slots=True)  # a large set has a million
class Inspection:
    """The result of an inspection. Only `error` and `fatal` are set for an unreadable image."""

    error: str = ""  # why the image cannot be used
    fatal: bool = False  # the decoder crashed or stalled, or the disk failed; such a result is not cached
    format: str = ""  # of the content: JPEG, PNG, ...
    mode: str = ""  # Pillow's, of the pixels in the file: RGB, L, P, CMYK, I;16, ...
    alpha: bool = False  # may have transparent pixels
    frames: int = 1
    width: int = 0  # of the upright image, in pixels
    height: int = 0
    sha256: str = ""  # of the file's bytes
    phash: str = ""  # 64 bits in hexadecimal; scaling, compression and brightness hardly change it
    phash_mirrored: str = ""  # of the mirrored image
    contrast: float = 0.0  # standard deviation of brightness, 0..128; about 0 for a blank image
    sharpness: float = 0.0  # energy of the finest details over the contrast; small for a blurred image
    values: Values = EIGHT_BITS  # of pixels of more than 8 bits
    colorfulness: float = 0.0  # mean difference between the channels, 0..255; about 0 for a gray image

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "Inspection":
        """Reads the fields from JSON, which has lists instead of tuples."""
        values = Values(*content.get("values", EIGHT_BITS))
        shared = {name: sys.intern(content[name]) for name in ("format", "mode", "error") if content.get(name)}
        return cls(**content | shared | {"values": EIGHT_BITS if values == EIGHT_BITS else values})


def inspect_image(path: Path | str) -> Inspection:
    """Reads and decodes an image completely. Problems with the image do not raise."""
    try:
        with open_regular(path, *USABLE) as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
            header = open_header(file, printable(path))
            deep = is_deep(header)  # before a PNG loads its pixels
            turned = read_orientation(header) >= 5
            kind, mode, alpha = header.format or "JPEG", header.mode, header.has_transparency_data
            frames, sides = _count_frames(header), header.size
            del header  # a PNG has loaded its pixels to look for an orientation behind them
        values = measure_values(path) if deep else EIGHT_BITS
        image = load_image(path, at_least=2 * MEASURE_SIDE, value_range=range_of(values))
    except FlowersError as error:
        passing = isinstance(error, ResourceError) or getattr(error.__cause__, "errno", None) is not None
        return Inspection(error=str(error), fatal=passing)  # guard: S9 check
    width, height = image.size
    if max(width, height) < max(sides):  # the decoder reduced it
        width, height = reversed(sides) if turned else sides
    found = Inspection(format=kind, mode=mode, alpha=alpha, frames=frames, sha256=sha256, width=width, height=height)
    return dataclasses.replace(found, values=values, **_measure(image))


def _count_frames(image: Image.Image) -> int:
    try:
        with quiet():
            return int(getattr(image, "n_frames", 1))
    # guard: S11 frames
    except Exception:  # it parses what follows the first frame, which alone is used
        return 1


def _measure(image: Image.Image) -> dict[str, Any]:
    # Reducing by an integer is the fastest way.
    factor = round(max(image.size) / MEASURE_SIDE)
    image = image.reduce(factor) if factor > 1 else image
    gray = image.convert("L")
    contrast = float(ImageStat.Stat(gray).stddev[0])
    sharpness = _edges(np.asarray(gray)) / (contrast + 1)
    tiny = image.resize((HASH_SIDE, HASH_SIDE), Image.Resampling.BOX, reducing_gap=1.0)
    rgb = np.asarray(tiny, dtype=np.float32)
    colorfulness = round(float((rgb.max(axis=2) - rgb.min(axis=2)).mean()), 2)
    measured = {"contrast": round(contrast, 2), "sharpness": round(sharpness, 4), "colorfulness": colorfulness}
    return measured | dict(zip(("phash", "phash_mirrored"), perceptual_hashes(rgb.mean(axis=2)), strict=True))


def _edges(gray: np.ndarray) -> float:
    """Standard deviation of Pillow's `FIND_EDGES` filter, five times as fast on rows of integers."""
    values = gray.astype(np.int16)
    if min(values.shape) < 3:
        return 0.0
    rows = values[:-2] + values[1:-1] + values[2:]
    squares = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
    edges = (9 * values[1:-1, 1:-1] - squares).clip(0, 255).astype(np.float32).ravel()
    mean = float(edges.mean())
    return float(np.sqrt(max(0.0, float(edges @ edges) / len(edges) - mean * mean)))


def perceptual_hashes(gray: np.ndarray) -> tuple[str, str]:
    """64-bit perceptual hashes, in hexadecimal, of an image (32, 32) and of its mirror image.

    The bits are the signs, around their median, of the 8 x 8 lowest frequencies of the cosine transform
    except the mean (Zauner, "Implementation and benchmarking of perceptual image hash functions", 2010).
    """
    frequencies = COSINES @ gray @ COSINES.T  # (9, 9): rows vertical, columns horizontal
    low = frequencies[:8, 1:9]  # without the column of frequency 0, which holds the mean
    # Mirroring changes the sign of horizontal cosines of odd frequency.
    return _bits(low), _bits(low * np.where(np.arange(1, 9) % 2 == 1, -1.0, 1.0))


def _bits(values: np.ndarray) -> str:
    return np.packbits((values > np.sort(values, axis=None)[31:33].mean()).ravel()).tobytes().hex()


def main() -> None:
    """Prints "ready", then one inspection for each line of standard input."""
    print("ready", flush=True)
    for line in sys.stdin:
        inspection = inspect_image(json.loads(line))
        print(json.dumps(dataclasses.asdict(inspection)), flush=True)


if __name__ == "__main__":
    main()
