"""Mutated images: each goes through the check, the loader of training and `predict`, which have to agree."""

import dataclasses
import functools
import io
import random
import struct
import zlib
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image, ImageCms, PngImagePlugin, features

from flowers_torch.data.color import PRIMARIES, coded_profile, matrix_profile
from flowers_torch.data.images import load_image
from flowers_torch.data.quality.inspection import inspect_image
from flowers_torch.data.value_range import range_of
from flowers_torch.deploy.predictor import Predictor
from flowers_torch.errors import DataError

from .mutate import PAINT, mutate_bytes
from .sandbox import Box, trim_memory

Case = tuple[str, Callable[[], Callable[[], int]]]  # a name, and what builds an action


def seeds() -> dict[str, bytes]:
    """Whole images of every accepted format and of the variants that cameras and programs write."""
    draw = np.random.default_rng(0)
    noise = draw.integers(0, 256, (48, 64, 3), dtype=np.uint8)
    rgb = Image.fromarray((noise // 4 + np.linspace(0, 190, 64, dtype=np.uint8)[None, :, None]).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112], exif[0x010E], exif[0x9286] = 6, PAINT, b"x" * 300
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", PAINT)
    text.add_text("Long", "x" * 2000, zip=True)
    deep = Image.fromarray(draw.integers(0, 65536, (48, 64), dtype=np.uint16))
    frames = [rgb, rgb.rotate(90), rgb.rotate(180)]
    made: dict[str, tuple[Image.Image, dict[str, object]]] = {
        "baseline.jpg": (rgb, {"quality": 80, "exif": exif}),
        "progressive.jpg": (rgb, {"progressive": True, "icc_profile": profile}),
        "gray.jpg": (rgb.convert("L"), {}),
        "cmyk.jpg": (rgb.convert("CMYK"), {}),
        "large.jpg": (rgb.resize((1600, 1200)), {"quality": 50}),
        "rgb.png": (rgb, {"pnginfo": text, "exif": exif}),
        "rgba.png": (rgb.convert("RGBA"), {}),
        "palette.png": (rgb.quantize(16), {"transparency": 3}),
        "deep.png": (deep, {}),
        "animated.png": (rgb, {"save_all": True, "append_images": frames[1:]}),
        "animated.gif": (rgb.quantize(16), {"save_all": True, "append_images": [f.quantize(16) for f in frames[1:]]}),
        "rgb.bmp": (rgb, {}),
        "palette.bmp": (rgb.quantize(16), {}),
        "raw.tif": (rgb, {"exif": exif}),
        "lzw.tif": (rgb, {"compression": "tiff_lzw"}),
        "jpeg.tif": (rgb, {"compression": "jpeg"}),
        "deflate.tif": (rgb, {"compression": "tiff_adobe_deflate"}),
        "deep.tif": (deep, {}),
        "float.tif": (Image.fromarray(np.asarray(deep) / np.float32(65535)), {}),
        "p3.png": (rgb, {"icc_profile": coded_profile(12, 13)}),
        "p3.jpg": (rgb, {"icc_profile": coded_profile(12, 13), "quality": 90}),
        "gamma.png": (rgb, {"icc_profile": matrix_profile(PRIMARIES[9], 1.8)}),
        "lab.tif": (Image.merge("LAB", rgb.split()), {}),
        "fax.tif": (rgb.convert("1"), {"compression": "group4"}),
        "lossy.webp": (rgb, {"quality": 60, "exif": exif}),
        "lossless.webp": (rgb.convert("RGBA"), {"lossless": True}),
        "rgb.ppm": (rgb, {}),
    }
    contents = {"lossless.jpg": _lossless_jpeg(200), "deep_colors.png": _deep_png(draw.integers(0, 4096, (48, 64, 3)))}
    if features.check("avif"):
        made["rgb.avif"] = (rgb, {})
    for name, (image, options) in made.items():
        file = io.BytesIO()
        kind = {"jpg": "JPEG", "tif": "TIFF"}.get(name[-3:], name.rpartition(".")[2].upper())
        image.save(file, kind, **options)
        contents[name] = file.getvalue()
    return contents


def _lossless_jpeg(side: int) -> bytes:
    """A gray image of the lossless process, which has no reduced form; all differences are 0."""
    frame = struct.pack(">HHBHHBBBB", 0xFFC3, 11, 8, side, side, 1, 1, 0x11, 0)
    table = struct.pack(">HHBB15xB", 0xFFC4, 20, 0, 1, 0)
    scan = struct.pack(">HHBBBBBB", 0xFFDA, 8, 1, 1, 0, 1, 0, 0)
    return b"\xff\xd8" + frame + table + scan + bytes(side * side // 8) + b"\xff\xd9"


def _deep_png(values: np.ndarray) -> bytes:
    """Colors of 16 bits (height, width, 3), which Pillow does not write."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    made = b"\x89PNG\r\n\x1a\n"
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, 2, 0, 0, 0)
    for kind, content in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        made += struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    return made


def bombs() -> dict[str, bytes]:
    """Images whose small files stand for many pixels."""
    found = {}
    for name, mode, side in (("rgba.png", "RGBA", 9400), ("gray.png", "L", 9400), ("one.png", "1", 30000)):
        file = io.BytesIO()
        Image.new(mode, (side, side)).save(file, "PNG")
        found[name] = file.getvalue()
    file = io.BytesIO()
    Image.new("RGB", (9000, 9000)).save(file, "JPEG", quality=10, progressive=True)
    found["progressive.jpg"] = file.getvalue()
    for name, mode, side, options in (
        ("phone.jpg", "RGB", 14000, {}),  # 196 million pixels
        ("whole.jpg", "RGB", 14000, {"progressive": True}),
    ):
        file = io.BytesIO()
        Image.new(mode, (side, side)).save(file, "JPEG", quality=10, **options)
        found[name] = file.getvalue()
    text = PngImagePlugin.PngInfo()
    for number in range(200):
        text.add_text(f"Comment {number}", "x" * 5_000_000, zip=True)
    file = io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, "PNG", pnginfo=text)
    found["text.png"] = file.getvalue()
    if features.check("avif"):
        file = io.BytesIO()
        Image.new("RGBA", (5200, 5200)).save(file, "AVIF", speed=10, quality=10)
        found["rgba.avif"] = file.getvalue()
    file = io.BytesIO()
    Image.new("RGB", (2000, 2000)).save(file, "JPEG", progressive=True)
    last = file.getvalue().rindex(b"\xff\xda")
    found["scans.jpg"] = file.getvalue()[:last] + file.getvalue()[last:-2] * 5000 + b"\xff\xd9"
    for name, side in (("rgba.webp", 5200), ("wide.webp", 9400)):
        file = io.BytesIO()
        Image.new("RGBA", (side, side)).save(file, "WEBP", lossless=True, quality=0, method=0)
        found[name] = file.getvalue()
    file = io.BytesIO()
    Image.new("L", (1, 1)).save(file, "GIF", save_all=True, append_images=[Image.new("L", (1, 1), n) for n in (1, 2)])
    found["canvas.gif"] = file.getvalue()[:6] + b"\x50\x46\x50\x46" + file.getvalue()[10:]
    return found


def cases(count: int, draw: random.Random, box: Box, classifier: Predictor) -> Iterator[Case]:
    """Names and actions. An action ends with 0 where all readers agree, else it raises."""
    whole = seeds()
    for name, content in bombs().items():
        yield f"bomb {name}", builder(content, name, box, classifier, whole=False)
    for number in range(count):
        name = draw.choice(list(whole))
        content = mutate_bytes(whole[name], draw)
        if draw.random() < 0.1:  # a tail of another file
            other = whole[draw.choice(list(whole))]
            content = content[: draw.randrange(len(content) + 1)] + other[draw.randrange(len(other)) :]
        yield f"{number} {name}", builder(content, name, box, classifier)


def builder(
    content: bytes, name: str, box: Box, classifier: Predictor, whole: bool = True
) -> Callable[[], Callable[[], int]]:
    """Without `whole`, images are read as the commands do: never larger than the network needs."""
    path = box.work / name

    def action() -> int:
        checked = inspect_image(path)
        value_range = range_of(checked.values)  # as a model that was trained on it
        inputs = dataclasses.replace(classifier.info.preprocessing, value_range=value_range)
        classifier.info = dataclasses.replace(classifier.info, preprocessing=inputs)
        load = functools.partial(load_image, value_range=value_range)
        readers: dict[str, Callable[[], object]] = {
            "check": lambda: _raise(checked.error),
            "train": lambda: load(path, at_least=0 if whole else 128),
            "train, reduced": lambda: load(path, at_least=64),
            "predict": lambda: _raise(next(iter(classifier.predict([path]))).error),
            "serve": lambda: load(io.BytesIO(path.read_bytes()), at_least=0 if whole else 64),
        }
        verdicts = {reader: _verdict(read) for reader, read in readers.items()}
        if len({verdict == "" for verdict in verdicts.values()}) > 1:
            raise AssertionError(f"the readers disagree: {verdicts}")
        if refused := verdicts["train"]:
            raise DataError(refused)
        return 0

    def build() -> Callable[[], int]:
        path.write_bytes(content)
        return action

    return build


def _raise(error: str) -> None:
    if error:
        raise DataError(error)


def _verdict(read: Callable[[], object]) -> str:
    trim_memory()  # of the reader before, which another thread may have used
    try:
        read()
    except DataError as error:
        return str(error)
    return ""
