"""Looks at one photo: can it be read, what is it really, what does it look like?

Run as a program it is the worker of `scan.py`: a path as JSON on each line in, its inspection as JSON out.
It runs apart because a photo that crashes or stalls a decoder must cost one photo, not the whole check.
So this module imports little; torch would take seconds in every worker.
"""

import dataclasses
import functools
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from flowers_torch.data.images import load_image, open_header, open_regular, read_orientation
from flowers_torch.errors import DataError, printable

HASH_SIDE = 32  # pixels that the perceptual hash looks at
MEASURE_SIDE = 300  # sharpness is measured at about this longer side (225 .. 450), not at the camera's size


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What is known of one photo; all but `error` is empty where it could not be read.

    Attributes:
        error: Why it cannot be used; empty for a good photo.
        deadly: Whether its decoder crashed or stalled, which is tried anew the next time.
        format: By content: JPEG, PNG, ...
        mode: Of the stored pixels, as Pillow calls it: RGB, L, P, CMYK, I;16, ...
        alpha: Whether anything in it may be transparent.
        frames: Pictures in the file.
        width: Of the upright photo, in pixels.
        height: Of the upright photo, in pixels.
        sha256: Of the file's bytes.
        phash: 64 bits as hexadecimal that change little when the photo is scaled, compressed or brightened.
        phash_mirrored: The same of the photo seen in a mirror.
        contrast: Standard deviation of brightness, 0..128; about 0 for a blank picture.
        sharpness: Energy of the finest details over the contrast; small for a blurred picture.
        colour: Mean difference between the channels, 0..255; about 0 for a grey picture.
    """

    error: str = ""
    deadly: bool = False
    format: str = ""
    mode: str = ""
    alpha: bool = False
    frames: int = 1
    width: int = 0
    height: int = 0
    sha256: str = ""
    phash: str = ""
    phash_mirrored: str = ""
    contrast: float = 0.0
    sharpness: float = 0.0
    colour: float = 0.0


def inspect_image(path: Path | str) -> Inspection:
    """Reads and decodes a photo completely; never raises for what is wrong with it."""
    try:
        with open_regular(path) as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
            header = open_header(file, printable(path))
            turned = read_orientation(header) >= 5
            stored: dict[str, Any] = {
                "format": header.format or "JPEG",
                "mode": header.mode,
                "alpha": header.has_transparency_data,
                "frames": int(getattr(header, "n_frames", 1)),
            }
        image = load_image(path, at_least=2 * MEASURE_SIDE)
    except DataError as error:
        return Inspection(error=str(error))
    except Exception as error:  # counting frames walks the whole file and can fail in any way
        return Inspection(
            error=f"{printable(path)} is damaged: {printable(error)}; fix: replace or remove it"
        )
    width, height = image.size
    if max(width, height) < max(header.size):  # it was decoded at a part of its size
        width, height = reversed(header.size) if turned else header.size
    return Inspection(sha256=sha256, width=width, height=height, **stored, **_measure(image))


def _measure(image: Image.Image) -> dict[str, Any]:
    # By a whole factor, which is the fastest way to make an image smaller.
    factor = round(max(image.size) / MEASURE_SIDE)
    image = image.reduce(factor) if factor > 1 else image
    grey = image.convert("L")
    contrast = _spread(grey)
    sharpness = _edges(np.asarray(grey)) / (contrast + 1)
    tiny = image.resize((HASH_SIDE, HASH_SIDE), Image.Resampling.BOX, reducing_gap=1.0)
    rgb = np.asarray(tiny, dtype=np.float32)
    upright, mirrored = perceptual_hashes(rgb.mean(axis=2))
    return {
        "phash": f"{upright:016x}",
        "phash_mirrored": f"{mirrored:016x}",
        "contrast": round(contrast, 2),
        "sharpness": round(sharpness, 4),
        "colour": round(float((rgb.max(axis=2) - rgb.min(axis=2)).mean()), 2),
    }


def _spread(grey: Image.Image) -> float:
    """Standard deviation of the brightness, from the histogram: several times faster than from the pixels."""
    counts = np.asarray(grey.histogram(), dtype=np.float64)
    levels = np.arange(256)
    mean = (counts @ levels) / counts.sum()
    return float(np.sqrt((counts @ (levels - mean) ** 2) / counts.sum()))


def _edges(grey: np.ndarray) -> float:
    """Standard deviation of what a pixel has more than its eight neighbours together, 0..255 (H, W).

    The filter is Pillow's `FIND_EDGES`; whole rows of small integers are five times as fast.
    """
    values = grey.astype(np.int16)
    if min(values.shape) < 3:
        return 0.0
    rows = values[:-2] + values[1:-1] + values[2:]
    squares = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
    edges = (9 * values[1:-1, 1:-1] - squares).clip(0, 255).astype(np.float32).ravel()
    mean = float(edges.mean())
    return float(np.sqrt(max(0.0, float(edges @ edges) / len(edges) - mean * mean)))


def perceptual_hashes(grey: np.ndarray) -> tuple[int, int]:
    """64-bit perceptual hash of a picture and of its mirror image.

    The signs, around their median, of the 8 x 8 lowest frequencies of its cosine transform but the very
    lowest (Zauner, "Implementation and benchmarking of perceptual image hash functions", 2010).

    Args:
        grey: Brightness (32, 32).
    """
    basis = _cosines(HASH_SIDE, 9)
    frequencies = basis @ grey @ basis.T  # (9, 9): rows vertical, columns horizontal
    low = frequencies[:8, 1:9]  # leaves out the column of frequency 0, and with it the mean
    # Seen in a mirror, a horizontal cosine of odd frequency changes its sign.
    signs = np.where(np.arange(1, 9) % 2 == 1, -1.0, 1.0)
    return _bits(low), _bits(low * signs)


def _bits(values: np.ndarray) -> int:
    middle = np.sort(values, axis=None)[31:33].mean()
    return int.from_bytes(np.packbits((values > middle).ravel()).tobytes(), "big")


@functools.cache
def _cosines(size: int, count: int) -> np.ndarray:
    """Rows of a type-II cosine transform (count, size)."""
    positions = (np.arange(size) + 0.5) * np.pi / size
    return np.cos(np.arange(count)[:, None] * positions).astype(np.float32)


def main() -> None:
    """Says that it is ready, then answers each line of standard input until it ends."""
    print("ready", flush=True)
    for line in sys.stdin:
        inspection = inspect_image(json.loads(line))
        print(json.dumps(dataclasses.asdict(inspection)), flush=True)


if __name__ == "__main__":
    main()
