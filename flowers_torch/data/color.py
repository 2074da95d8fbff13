"""Color profiles: pixels become sRGB, which networks are trained on and browsers show.

A profile that is damaged, absurdly large or made for another kind of pixels is ignored, as browsers do.
"""

import functools
import io
import math
import struct
from typing import IO

import numpy as np
from PIL import Image, ImageCms

from flowers_torch.data.png import color_codes

MAX_PROFILE_BYTES = 4 << 20  # those of printing presses have up to 3 MB
MAX_DIFFERENCE = 2  # gray levels by which the profile of an sRGB image may differ from sRGB
MODES = {"GRAY": "L", "RGB": "RGB", "CMYK": "CMYK"}  # Pillow's mode by the color space of a profile
TRANSFERS = {1: None, 6: None, 13: None, 14: None, 15: None, 4: 2.2, 5: 2.8, 8: 1.0}  # gamma; None is about sRGB's
# Chromaticities of white, red, green and blue by their number in ITU-T H.273.
PRIMARIES = {
    1: (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06),  # sRGB
    9: (0.3127, 0.329, 0.708, 0.292, 0.17, 0.797, 0.131, 0.046),  # BT.2020
    12: (0.3127, 0.329, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06),  # Display P3
}
D50 = (0.9642, 1.0, 0.8249)  # the white point of profiles
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)


def profile_of(image: Image.Image, file: IO[bytes]) -> bytes:
    """The color profile of an opened image, or one for what its file says instead; empty for sRGB."""
    codes, profile = None, image.info.get("icc_profile")
    if image.format == "PNG":
        codes = color_codes(file)  # stronger than a profile
    elif image.format == "AVIF" and not profile:
        file.seek(0)
        _, mark, after = file.read(1 << 16).partition(b"colrnclx")
        codes = struct.unpack(">HH", after[:4]) if mark and len(after) >= 4 else None
    if codes:
        return coded_profile(*codes)
    if profile:
        return bytes(profile)
    gamma, primaries = image.info.get("gamma"), image.info.get("chromaticity")  # of PNG
    if image.info.get("srgb") is not None or not (gamma or primaries):
        return b""
    exponent = 1 / gamma if gamma else 2.2
    plain = abs(exponent - 2.2) < 0.05  # meant for the curve of sRGB
    return matrix_profile(tuple(primaries or PRIMARIES[1]), None if plain else exponent)


def to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """An image without transparency as sRGB, from the color space of its profile."""
    if image.mode == "LAB":
        return _apply(image, _lab_transform())
    mode, transform = _transform(profile) if profile else ("", None)
    fits = image.mode == mode or (mode == "RGB" and image.mode != "CMYK") or (mode == "L" and image.mode == "1")
    if transform and fits:
        return _apply(image if image.mode == mode else image.convert(mode), transform)
    # An opened image keeps its file. `copy` and a real conversion do not.
    return image.copy() if image.mode == "RGB" else image.convert("RGB")  # guard: D16


def _apply(image: Image.Image, transform: ImageCms.ImageCmsTransform) -> Image.Image:
    converted = ImageCms.applyTransform(image, transform)
    assert converted is not None  # noqa: S101 - not in place
    converted.info.clear()
    return converted


@functools.lru_cache(maxsize=8)
def _transform(profile: bytes) -> tuple[str, ImageCms.ImageCmsTransform | None]:
    """The mode that a profile takes and its transform to sRGB; no transform where the pixels stay as they are."""
    # A table of processing elements can take minutes; profiles of cameras, screens and presses have none.
    if len(profile) > MAX_PROFILE_BYTES or b"mpet" in profile:  # guard: S7 profile
        return "", None
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = MODES[source.profile.xcolor_space.strip()]
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
        return mode, None if mode == "RGB" and _changes_little(transform) else transform
    # guard: D21 profile
    except Exception:  # LittleCMS and Pillow each have their own errors; the pixels are still good
        return "", None


def _changes_little(transform: ImageCms.ImageCmsTransform) -> bool:
    """Whether a transform of RGB is that of an sRGB profile: most photos have one, and no two programs' are equal."""
    levels = np.linspace(0, 255, 9).round().astype(np.uint8)
    grid = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(27, 27, 3)
    changed = np.asarray(_apply(Image.fromarray(grid), transform))
    return int(np.abs(changed.astype(int) - grid.astype(int)).max()) <= MAX_DIFFERENCE


@functools.cache
def _lab_transform() -> ImageCms.ImageCmsTransform:
    return ImageCms.buildTransform(
        ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB"
    )  # D50, as TIFF says


@functools.cache
def coded_profile(primaries: int, transfer: int) -> bytes:
    """The profile for code points of ITU-T H.273, as PNG and AVIF store them; empty for sRGB, HDR and unknown ones."""
    if primaries not in PRIMARIES or transfer not in TRANSFERS or (primaries == 1 and TRANSFERS[transfer] is None):
        return b""
    return matrix_profile(PRIMARIES[primaries], TRANSFERS[transfer])


@functools.lru_cache(maxsize=8)
def matrix_profile(chromaticities: tuple[float, ...], gamma: float | None) -> bytes:
    """An ICC profile, version 4; empty if there is none with these numbers.

    Args:
        chromaticities: x and y of white, red, green and blue.
        gamma: Exponent from stored to linear values; None for the curve of sRGB.
    """
    try:
        white, *colors = (
            np.array([x / y, 1.0, (1 - x - y) / y])
            for x, y in zip(chromaticities[::2], chromaticities[1::2], strict=True)
        )
        primaries = np.stack(colors, axis=1)
        primaries = primaries * np.linalg.solve(primaries, white)
        adapt = np.linalg.inv(BRADFORD) @ np.diag((BRADFORD @ D50) / (BRADFORD @ white)) @ BRADFORD
        columns = (adapt @ primaries).T
        if not (np.abs(columns).max() < 100 and math.isfinite(gamma or 0)):
            return b""
        return _encode(columns, (gamma,) if gamma else SRGB_CURVE)
    except (ArithmeticError, ValueError, struct.error, np.linalg.LinAlgError):  # points on a line, zeros
        return b""


def _encode(columns: np.ndarray, curve: tuple[float, ...]) -> bytes:
    def fixed(*values: float) -> bytes:
        return b"".join(struct.pack(">i", round(value * 65536)) for value in values)

    text = b"mluc\0\0\0\0" + struct.pack(">II2s2sII", 1, 12, b"en", b"US", 2, 28) + b"\0x"
    curves = b"para\0\0\0\0" + struct.pack(">HH", 3 if len(curve) == 5 else 0, 0) + fixed(*curve)
    tags = [(b"desc", text), (b"cprt", text), (b"wtpt", b"XYZ \0\0\0\0" + fixed(*D50))]
    names = (b"rXYZ", b"gXYZ", b"bXYZ")
    tags += [(name, b"XYZ \0\0\0\0" + fixed(*column)) for name, column in zip(names, columns.tolist(), strict=True)]
    tags += [(name, curves) for name in (b"rTRC", b"gTRC", b"bTRC")]
    table, body = struct.pack(">I", len(tags)), b""
    for name, data in tags:
        table += struct.pack(">4sII", name, 132 + 12 * len(tags) + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    size = 128 + len(table) + len(body)
    head = struct.pack(">I4sI4s4s4s12x4s28x", size, b"\0" * 4, 0x04300000, b"mntr", b"RGB ", b"XYZ ", b"acsp")
    return (head + fixed(*D50)).ljust(128, b"\0") + table + body
