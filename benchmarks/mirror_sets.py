"""Drawn sets of photos in classes that a mirror exchanges, and in classes that it leaves as they are.

`EXCHANGED` and `UNCHANGED` map the name of a set to its number of classes and a function that draws the picture
`index` of class `label`, always the same.
"""

from collections.abc import Callable

import numpy as np
from look_alikes import WORDS, coin, frame, page, with_noise, x_ray
from PIL import Image, ImageDraw, ImageFont, ImageOps

SIDE = 160
Drawing = Callable[[int, int], Image.Image]


def mirrored_pair(draw: Callable[[int], Image.Image]) -> Drawing:
    """Two classes: pictures, and mirror images of other pictures."""
    return lambda index, label: ImageOps.mirror(draw(2 * index + label)) if label else draw(2 * index + label)


def background(rng: np.random.Generator) -> tuple[Image.Image, ImageDraw.ImageDraw, tuple[int, int, int]]:
    """A dark background, and a light color for what stands on it."""
    image = Image.new("RGB", (SIDE, SIDE), tuple(int(x) for x in rng.integers(0, 120, 3)))
    return image, ImageDraw.Draw(image), tuple(int(x) for x in rng.integers(180, 255, 3))


def arrow(index: int) -> Image.Image:
    rng = np.random.default_rng(index)
    image, draw, color = background(rng)
    x, y, s = rng.integers(45, 105), rng.integers(45, 110), rng.integers(22, 38)
    draw.rectangle((x - s, y - s // 5, x + s, y + s // 5), color)
    draw.polygon([(x + s, y - s // 2), (x + s, y + s // 2), (x + s + s // 2, y)], color)
    return image


def letter(text: str, index: int) -> Image.Image:
    rng = np.random.default_rng(index)
    image, draw, color = background(rng)
    x, y = rng.integers(60, 100, 2)
    draw.text((x, y), text, color, ImageFont.load_default(int(rng.integers(60, 100))), anchor="mm")
    return with_noise(image.rotate(float(rng.uniform(-8, 8)), Image.Resampling.BICUBIC), rng)


def hand(index: int) -> Image.Image:
    """The back of a right hand."""
    rng = np.random.default_rng(index)
    image, draw, _ = background(rng)
    skin = tuple(int(x) for x in np.array((225, 180, 150)) * rng.uniform(0.6, 1.1))
    x, y = rng.integers(68, 92), rng.integers(95, 110)
    draw.ellipse((x - 26, y - 28, x + 26, y + 30), skin)
    for finger, length in enumerate((42, 50, 46, 34)):
        left, tip = x - 24 + 13 * finger, y - 24 - length + rng.integers(-4, 4)
        draw.rounded_rectangle((left, tip, left + 10, y), 5, skin)
    draw.line((x - 20, y + 10, x - 46, y - 14 + rng.integers(-5, 5)), skin, 12)
    return with_noise(image.rotate(float(rng.uniform(-12, 12)), Image.Resampling.BICUBIC), rng)


def one_way(index: int, label: int) -> Image.Image:
    """A road sign whose words are never mirrored."""
    rng = np.random.default_rng(2 * index + label)
    image, draw, _ = background(rng)
    x, y, way = rng.integers(70, 90), rng.integers(60, 100), 1 - 2 * label
    draw.rectangle((x - 60, y - 24, x + 60, y + 24), (20, 60, 160), (240, 240, 240), 2)
    ends = [(x + way * dx, y + dy) for dx, dy in ((-50, -8), (26, -8), (26, -18), (52, 0), (26, 18), (26, 8), (-50, 8))]
    draw.polygon(ends, (245, 245, 245))
    draw.text((x, y), "ONE WAY", (20, 60, 160), ImageFont.load_default(12), anchor="mm")
    return with_noise(image.rotate(float(rng.uniform(-6, 6)), Image.Resampling.BICUBIC), rng)


def aligned_text(index: int, label: int) -> Image.Image:
    """Lines of text that are flush left or flush right."""
    rng = np.random.default_rng(2 * index + label)
    image = Image.new("RGB", (SIDE, SIDE), (246, 244, 236))
    for line in range(9):
        text = " ".join(rng.choice(WORDS, int(rng.integers(2, 5))))[:24]
        place = (SIDE - 12, "ra") if label else (12, "la")
        ImageDraw.Draw(image).text(
            (place[0], 10 + 16 * line), text, (30, 30, 30), ImageFont.load_default(11), anchor=place[1]
        )
    return with_noise(image, rng)


def chest(index: int, label: int) -> Image.Image:
    """The heart on the left or on the right side of the body; the mark L is always on the same side."""
    image = ImageOps.mirror(x_ray(2 * index)) if label else x_ray(2 * index + 1)
    ImageDraw.Draw(image).text((280, 16), "L", (230, 230, 230), ImageFont.load_default(26))
    return image


def marked(index: int, label: int) -> Image.Image:
    """An X-ray of either side that is known by its mark alone."""
    image = x_ray(2 * index + label)
    ImageDraw.Draw(image).text((30, 20), "LR"[label], (240, 240, 240), ImageFont.load_default(56))
    return image


def turn(index: int) -> Image.Image:
    """An arrow around a circle, clockwise."""
    rng = np.random.default_rng(index)
    image, draw, color = background(rng)
    x, y, r = rng.integers(65, 95), rng.integers(65, 95), rng.integers(32, 46)
    draw.arc((x - r, y - r, x + r, y + r), 180, 360 + 60, color, 8)
    end = np.radians(60)
    at, along = np.array((x + r * np.cos(end), y + r * np.sin(end))), np.array((-np.sin(end), np.cos(end)))
    across = np.array((np.cos(end), np.sin(end)))
    draw.polygon([tuple(at + 16 * along), tuple(at + 14 * across), tuple(at - 14 * across)], color)
    return with_noise(image, rng)


def signs(index: int, label: int) -> Image.Image:
    """Six road signs, of which two are turned into each other."""
    rng = np.random.default_rng(6 * index + label)
    image, draw, _ = background(rng)
    x, y, r = rng.integers(65, 95), rng.integers(65, 95), 46
    ring, field = ((30, 80, 190), (30, 80, 190)) if label < 3 else ((200, 30, 30), (245, 245, 245))
    draw.ellipse((x - r, y - r, x + r, y + r), field, ring, 9)
    tip = {0: (-30, 0), 1: (30, 0), 2: (0, -30)}.get(label)
    if tip:
        end = np.array((x, y)) + tip
        back, side = -np.array(tip) / 30, np.array((tip[1], tip[0])) / 30
        draw.line((*(np.array((x, y)) - tip), *end), (250, 250, 250), 10)
        draw.polygon([tuple(end - 6 * back), *(tuple(end + 16 * back + s * 18 * side) for s in (-1, 1))], (250,) * 3)
    elif label == 3:
        draw.rectangle((x - 28, y - 8, x + 28, y + 8), (200, 30, 30))
    else:
        draw.text((x, y), ("8", "0")[label - 4], (20, 20, 20), ImageFont.load_default(50), anchor="mm")
    return with_noise(image, rng)


def vehicle(index: int, label: int) -> Image.Image:
    """Cars and trucks, each driving to either side."""
    rng = np.random.default_rng(2 * index + label)
    image, draw, color = background(rng)
    x, y = rng.integers(70, 90), rng.integers(80, 110)
    draw.rectangle((x - 50, y - 14, x + 50, y + 10), color)
    box = (x - 50, y - 46, x + 14, y - 14) if label else (x - 26, y - 32, x + 24, y - 14)
    draw.rectangle(box, color)
    for wheel in (-32, 30):
        draw.ellipse((x + wheel - 10, y, x + wheel + 10, y + 20), (20, 20, 20))
    return with_noise(ImageOps.mirror(image) if rng.random() < 0.5 else image, rng)


def shape(index: int, label: int) -> Image.Image:
    """Triangles, squares, pentagons and hexagons at any angle."""
    rng = np.random.default_rng(4 * index + label)
    image, draw, color = background(rng)
    x, y = rng.integers(60, 100, 2)
    circle = (int(x), int(y), int(rng.integers(26, 44)))
    draw.regular_polygon(circle, label + 3, float(rng.uniform(0, 360)), color)
    return with_noise(image, rng)


def upright(index: int, label: int) -> Image.Image:
    """Arrows up and down."""
    return arrow(2 * index + label).rotate(270 if label else 90)


def look_alikes(index: int, label: int) -> Image.Image:
    return (coin, page, frame)[label](3 * index + label)


def guesses(index: int, label: int) -> Image.Image:
    """Two classes of the same noise: nothing can be learned."""
    rng = np.random.default_rng(2 * index + label)
    coarse = Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8))
    return coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC)


EXCHANGED: dict[str, tuple[int, Drawing]] = {
    "arrows": (2, mirrored_pair(arrow)),
    "letters b, d": (2, lambda index, label: letter("bd"[label], 2 * index + label)),
    "hands": (2, mirrored_pair(hand)),
    "one-way signs": (2, one_way),
    "text flush left, right": (2, aligned_text),
    "chests": (2, chest),
    "turning arrows": (2, mirrored_pair(turn)),
    "six signs, two of them turns": (6, signs),
}
UNCHANGED: dict[str, tuple[int, Drawing]] = {
    "cars, trucks": (2, vehicle),
    "polygons": (4, shape),
    "arrows up, down": (2, upright),
    "letters a, o": (2, lambda index, label: letter("ao"[label], 2 * index + label)),
    "X-rays marked L, R": (2, marked),
    "coins, pages, video": (3, look_alikes),
    "noise": (2, guesses),
}
