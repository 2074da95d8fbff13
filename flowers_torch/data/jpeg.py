"""What a JPEG takes in memory: its decoder can reduce it while it decodes, but some kinds are held whole."""

import struct
from typing import IO

from PIL import Image

MAX_SCANS = 100  # each is a pass over all pixels, and common encoders write up to 16
MAX_REDUCTION = 8  # of the sides
LOSSLESS = (0xC3, 0xC7, 0xCB, 0xCF)  # have no reduced form
SEQUENTIAL = (0xC0, 0xC1, 0xC9)
FRAMES = {marker for marker in range(0xC0, 0xD0) if marker not in (0xC4, 0xC8, 0xCC)}


def count_scans(file: IO[bytes]) -> int:
    """The number of scans of a JPEG, or a little more; a few bytes can stand for a pass over all pixels."""
    position = file.tell()
    file.seek(0)
    scans = sum(chunk.count(b"\xff\xda") for chunk in iter(lambda: file.read(1 << 20), b""))
    file.seek(position)
    return scans


def fewest_pixels(file: IO[bytes], image: Image.Image, limit: int) -> int:
    """The least number of pixels that decoding takes memory for, exact where the image has more than `limit` pixels.

    The decoder holds the coefficients of all pixels of a progressive JPEG, 2 bytes each: 3 of them count as a pixel.
    """
    pixels = image.width * image.height
    if pixels * 4 <= limit * 3:  # four coefficients a pixel are the most
        return pixels
    held = held_pixels(file, image)
    return max(held, -(-image.width // MAX_REDUCTION) * -(-image.height // MAX_REDUCTION))


def held_pixels(file: IO[bytes], image: Image.Image) -> int:
    """The pixels that no reduction saves: 0 for the usual kind, with one scan for all colors."""
    pixels = image.width * image.height
    frame, channels = _first_scan(file)
    if frame in SEQUENTIAL and channels == len(image.layer):  # type: ignore[attr-defined]
        return 0
    sampling = [(h, v) for _, h, v, _ in image.layer] or [(1, 1)]  # type: ignore[attr-defined]
    widest = max(h for h, _ in sampling) * max(v for _, v in sampling)
    if frame in LOSSLESS or not widest:
        return 2 * pixels
    return -(-pixels * sum(h * v for h, v in sampling) // (3 * widest))


def reduce(image: Image.Image, at_least: int, max_pixels: int) -> None:
    """Makes an opened JPEG load at 1/2, 1/4 or 1/8: while both sides stay `at_least` long, or to fit the limit."""
    width, height = image.size
    factor = min(width // at_least, height // at_least) if at_least else 1
    factor = next((n for n in (8, 4, 2) if factor >= n), 1)
    while factor < MAX_REDUCTION and -(-width // factor) * -(-height // factor) > max_pixels:  # guard: S7 decoded
        factor *= 2
    if factor > 1:
        image.draft(None, (max(1, width // factor), max(1, height // factor)))


def _first_scan(file: IO[bytes]) -> tuple[int, int]:
    """The marker of the frame, and the number of channels of the first scan; zeros where the file ends before."""
    file.seek(2)
    frame = 0
    for _ in range(10_000):
        byte = file.read(1)
        while byte and byte != b"\xff":
            byte = file.read(1)
        while byte == b"\xff":
            byte = file.read(1)
        if not byte:
            break
        marker = byte[0]
        if marker == 0 or 0xD0 <= marker <= 0xD8 or marker == 1:
            continue
        head = file.read(2)
        if len(head) < 2 or marker == 0xD9:
            break
        if marker == 0xDA:
            return frame, (file.read(1) or b"\0")[0]
        frame = marker if marker in FRAMES else frame
        file.seek(max(0, struct.unpack(">H", head)[0] - 2), 1)
    return 0, 0
