"""Drawn sets of different pictures that look alike, for the search for duplicates: no two of a set are copies.

`LOOK_ALIKES` maps the name of a set to a function that draws its picture number `index`, always the same.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

SIDE = 320
WORDS = "the of petal stamen leaf and under light a which grows near water early spring white yellow root stem".split()


def coin(index: int) -> Image.Image:
    """One tray, one size of coin, one light; the head and the year differ."""
    rng, (image, draw) = np.random.default_rng(index), blank((96, 88, 80))
    draw.ellipse((20, 20, 300, 300), (150, 140, 120), (90, 84, 70), 4)
    draw.ellipse((36, 36, 284, 284), (176, 166, 142), (110, 100, 84), 2)
    points = [(160 + rng.normal(0, 4) + r * np.cos(a), 150 + rng.normal(0, 4) + 1.2 * r * np.sin(a))
              for a, r in zip(np.linspace(0, 2 * np.pi, 24)[:-1], rng.normal(62, 7, 23), strict=True)]  # fmt: skip
    draw.polygon(points, (200, 190, 165), (100, 92, 76))
    for _ in range(5):
        x, y = rng.uniform(125, 195), rng.uniform(95, 205)
        draw.arc((x - 14, y - 9, x + 14, y + 9), *sorted(rng.uniform(0, 360, 2)), fill=(110, 100, 84), width=3)
    draw.text((160, 262), str(1900 + index), (80, 74, 60), ImageFont.load_default(22), anchor="mm")
    return with_noise(image, rng)


def x_ray(index: int) -> Image.Image:
    """Chests of 60 people in one position."""
    rng, (image, draw) = np.random.default_rng(index), blank((12, 12, 12))
    draw.rounded_rectangle((30, 10, 290, 330), 90, (120, 120, 120))
    for side in (-1, 1):
        x, y = 160 + side * rng.normal(62, 3), rng.normal(165, 4)
        w, h = rng.normal(46, 3), rng.normal(98, 5)
        draw.ellipse((x - w, y - h, x + w, y + h), (48, 48, 48))
        for rib in range(8):
            y = 75 + 24 * rib + rng.normal(0, 2)
            draw.arc((160 + side * 62 - 60, y - 20, 160 + side * 62 + 60, y + 26), 190, 350, (86, 86, 86), 5)
    draw.rectangle((150, 20, 170, 310), (190, 190, 190))
    draw.ellipse((135, 165 + rng.normal(0, 4), 165 + rng.normal(56, 4), 255), (150, 150, 150))
    return with_noise(image.filter(ImageFilter.GaussianBlur(3)), rng, gray=True)


def bird(index: int) -> Image.Image:
    """A small bird somewhere in a plain sky."""
    rng = np.random.default_rng(index)
    sky = np.linspace((105, 160, 220), (185, 210, 235), SIDE)[:, None].repeat(SIDE, 1)
    image = Image.fromarray(sky.astype(np.uint8))
    x, y, span = rng.uniform(60, 260), rng.uniform(60, 260), rng.uniform(10, 22)
    wing, tip = rng.uniform(-10, 4), rng.uniform(-6, 6)
    points = [(x - span, y + wing), (x, y - 2), (x + span, y + wing + tip), (x + 3, y + 5), (x - 3, y + 5)]
    ImageDraw.Draw(image).polygon(points, (40, 42, 48))
    return with_noise(image, rng)


def page(index: int) -> Image.Image:
    """A page of a book: other words in the same layout."""
    rng, (image, draw) = np.random.default_rng(index), blank((246, 244, 236))
    for line in range(24):
        text = " ".join(rng.choice(WORDS, 12))
        draw.text((24, 14 + 12 * line), text[:52], (30, 30, 30), ImageFont.load_default(10))
    return with_noise(image, rng)


def framed(index: int) -> Image.Image:
    """A small picture in a large golden frame on the same wall."""
    rng, (image, draw) = np.random.default_rng(index), blank((130, 60, 55))
    for inset in range(20, 90, 7):
        shade = 110 + (inset * 37) % 120
        draw.rectangle((inset, inset, SIDE - inset, SIDE - inset), (shade, int(shade * 0.8), 50))
    coarse = Image.fromarray(rng.integers(30, 226, (4, 4, 3), dtype=np.uint8))
    image.paste(coarse.resize((120, 120), Image.Resampling.BICUBIC), (100, 100))
    return with_noise(image, rng)


def frame(index: int) -> Image.Image:
    """A frame of a video: a ball crosses a still scene, three pixels a frame, under fresh sensor noise."""
    scene = np.random.default_rng(0).integers(40, 216, (9, 9, 3), dtype=np.uint8)
    image = Image.fromarray(scene).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    x, y = 40 + 3 * (index % 80), 160 + 60 * np.sin(index / 12) + 5 * (index // 80)
    ImageDraw.Draw(image).ellipse((x - 14, y - 14, x + 14, y + 14), (230, 220, 60), (60, 50, 20), 2)
    return with_noise(image, np.random.default_rng(index))


def dial(index: int) -> Image.Image:
    """A gauge; the needle is what tells the classes apart."""
    image, draw = blank((60, 66, 70))
    draw.ellipse((20, 20, 300, 300), (235, 235, 228), (20, 20, 20), 8)
    for mark in np.linspace(-220, 40, 27):
        c, s = np.cos(np.radians(mark)), np.sin(np.radians(mark))
        draw.line((160 + 112 * c, 160 + 112 * s, 160 + 126 * c, 160 + 126 * s), (20, 20, 20), 3)
    angle = np.radians(-220 + 260 * index / 60)
    draw.line((160, 160, 160 + 100 * np.cos(angle), 160 + 100 * np.sin(angle)), (180, 20, 20), 5)
    return with_noise(image, np.random.default_rng(index))


def board(index: int) -> Image.Image:
    """A circuit board of one type; every board lacks another small part."""
    rng, (image, draw) = np.random.default_rng(7), blank((20, 92, 52))
    for _ in range(14):
        x, y, w, h = *rng.integers(10, 250, 2), *rng.integers(20, 60, 2)
        draw.rectangle((x, y, x + w, y + h), (26, 26, 30), (150, 150, 140))
    for part in range(60):
        x, y = 14 + 30 * (part % 10), 22 + 52 * (part // 10)
        if part != index % 60:
            draw.rectangle((x, y, x + 12, y + 7), (196, 170, 120), (230, 230, 220))
    return with_noise(image, np.random.default_rng(index))


def lamp(index: int) -> Image.Image:
    """A lamp of another color, as bright as the others."""
    image, draw = blank((90, 90, 90))
    draw.rounded_rectangle((90, 20, 230, 300), 30, (24, 24, 24))
    hue = Image.new("YCbCr", (1, 1), (120, *(int(128 + 80 * f(index * 2 * np.pi / 60)) for f in (np.cos, np.sin))))
    draw.ellipse((110, 110, 210, 210), hue.convert("RGB").getpixel((0, 0)))
    return with_noise(image, np.random.default_rng(index))


def stars(index: int) -> Image.Image:
    """A night sky with one moon and other stars."""
    rng, (image, draw) = np.random.default_rng(index), blank((8, 10, 24))
    draw.ellipse((120, 110, 200, 190), (226, 222, 200))
    for x, y, r in zip(*rng.uniform(4, 316, (2, 40)), rng.uniform(0.5, 2.5, 40), strict=True):
        draw.ellipse((x - r, y - r, x + r, y + r), (240, 240, 255))
    return with_noise(image, rng)


def sign(index: int) -> Image.Image:
    """A speed limit; the number is small in the picture."""
    image, draw = blank((150, 170, 190))
    draw.rectangle((154, 180, 166, 320), (120, 120, 120))
    draw.ellipse((80, 40, 240, 200), (245, 245, 245), (200, 20, 30), 24)
    draw.text((160, 120), str(10 + index), (20, 20, 20), ImageFont.load_default(52), anchor="mm")
    return with_noise(image, np.random.default_rng(index))


LOOK_ALIKES: dict[str, Callable[[int], Image.Image]] = {
    "coins": coin,
    "X-rays": x_ray,
    "birds in the sky": bird,
    "pages of text": page,
    "framed pictures": framed,
    "frames of a video": frame,
    "dials": dial,
    "circuit boards": board,
    "colored lamps": lamp,
    "stars": stars,
    "speed limits": sign,
}


def blank(color: tuple[int, int, int]) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGB", (SIDE, SIDE), color)
    return image, ImageDraw.Draw(image)


def with_noise(image: Image.Image, rng: np.random.Generator, gray: bool = False) -> Image.Image:
    """The picture under the noise of a sensor."""
    noise = rng.normal(0, 3, (*image.size, 1 if gray else 3))
    return Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))
