"""Demo data: little pictures of flowers that exist nowhere, drawn on the spot.

The classes are forms (`cup`, `rays`, ...), not species. They share their colours, grounds, poses and light,
so that a classifier has to look at the shape: the mean colour of a picture does not give the class away.
Every flower is built in three dimensions from one part, a whorl of petals, and seen by a tilted camera.
"""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from flowers_torch.errors import UsageError, printable

Array = NDArray[np.float64]
Colour = Array  # red, green, blue in 0..1

SUPERSAMPLING = 3  # flowers are drawn this much larger and averaged down, which smooths their edges
OUTLINE_POINTS = 9  # along each side of a petal

# Petal colours by name: (tip, throat). Every form draws from several, and each is shared by several forms.
PETALS: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "white": ((0.96, 0.95, 0.92), (0.88, 0.90, 0.62)),
    "cream": ((0.98, 0.92, 0.72), (0.93, 0.74, 0.30)),
    "yellow": ((0.98, 0.84, 0.18), (0.90, 0.55, 0.08)),
    "orange": ((0.97, 0.57, 0.16), (0.78, 0.22, 0.07)),
    "red": ((0.84, 0.15, 0.16), (0.35, 0.04, 0.10)),
    "pink": ((0.96, 0.64, 0.75), (0.80, 0.24, 0.46)),
    "magenta": ((0.80, 0.20, 0.56), (0.96, 0.78, 0.84)),
    "violet": ((0.52, 0.30, 0.74), (0.86, 0.80, 0.95)),
    "blue": ((0.36, 0.46, 0.88), (0.92, 0.93, 0.98)),
}

# A petal is drawn as four shapes, one on another: share of its length, width and notch, brightness, and how far
# its colour goes from tip to throat.
LAYERS = np.array(
    [
        [1.00, 1.00, 1.0, 0.68, 0.0],  # a dark rim
        [0.95, 0.80, 1.0, 0.94, 0.0],
        [0.85, 0.45, 0.0, 1.06, 0.0],  # a lit middle
        [0.45, 0.50, 0.0, 1.00, 0.6],
    ]
)
GREENS = ((0.20, 0.40, 0.12), (0.33, 0.52, 0.17), (0.14, 0.32, 0.16), (0.45, 0.58, 0.26), (0.26, 0.42, 0.24))


def draw_demo(folder: Path, classes: int = 6, per_class: int = 100, size: int = 96, seed: int = 0) -> None:
    """Draws `classes` folders of `per_class` JPEG pictures; the same arguments give the same bytes.

    A picture depends on (seed, class, index, size) alone, so a larger set contains the smaller one.

    Args:
        folder: Where the class folders go; must be new or empty. It appears complete or not at all.
        classes: 2 to 6, in the order of `FORMS`.
        per_class: Pictures in each class.
        size: Width and height in pixels.
        seed: Of all randomness.

    Raises:
        UsageError: a number out of range, or a folder that holds something.
    """
    if not 2 <= classes <= len(FORMS):
        raise UsageError(
            f"demo data has 2 to {len(FORMS)} classes, not {classes}", "choose a number in that range"
        )
    if per_class < 1 or size < 16:
        raise UsageError(
            f"demo data of {per_class} pictures of {size} pixels", "at least 1 picture, 16 pixels"
        )
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise UsageError(f"demo data would be mixed into {printable(folder)}", "name a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        for number, form in enumerate(list(FORMS)[:classes]):
            (unfinished / form).mkdir(parents=True)
            for index in range(per_class):
                rng = np.random.default_rng([seed, number, index])
                picture = draw_picture(form, size, rng)
                picture.save(unfinished / form / f"{form}_{index:04d}.jpg", quality=92, subsampling=0)
        os.replace(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def draw_picture(form: str, size: int, rng: np.random.Generator) -> Image.Image:
    """One picture of a flower of a form: ground, shadow, stem, blossom, light.

    Args:
        form: A key of `FORMS`.
        size: Width and height in pixels.
        rng: Consumed in a fixed order.
    """
    light = rng.uniform(0, 2 * np.pi)  # where it comes from, as an angle in the picture
    ground = _ground(size, rng)
    flower = _Canvas(size, light, rng)
    FORMS[form](flower, rng)
    layer = flower.image.reduce(SUPERSAMPLING)
    if rng.random() < 0.3:  # the camera is not always in focus
        layer = layer.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.8) * size / 96))
    reach = rng.uniform(0.02, 0.06) * size
    shadow = layer.getchannel("A").filter(ImageFilter.GaussianBlur(0.04 * size))
    strength = rng.uniform(0.2, 0.6)
    shadow = shadow.point(lambda value: value * strength)
    ground.paste((8, 12, 10), (round(-reach * np.cos(light)), round(reach * np.sin(light))), shadow)
    ground.paste(layer, (0, 0), layer)
    return _lit(ground, light, rng)


@dataclass
class _Pose:
    """Where a blossom sits and how it faces: picture = centre + scale * project(rotate(point))."""

    centre: Array  # x to the right, y down, in picture widths
    scale: float  # picture widths per unit of the blossom
    tilt: float  # radians between the blossom's axis and the line of sight
    roll: float  # direction of the tilt in the picture; 0 leans the axis upwards

    def project(self, points: Array) -> tuple[Array, Array]:
        """Points (..., 3) with z along the axis to (..., 2) in picture widths, and depth (...) to the viewer."""
        x, y, z = np.moveaxis(points, -1, 0)
        up = y * np.cos(self.tilt) + z * np.sin(self.tilt)
        depth = z * np.cos(self.tilt) - y * np.sin(self.tilt)
        near = self.scale / (1 - 0.18 * depth)
        right, up = (
            (x * np.cos(self.roll) + up * np.sin(self.roll)) * near,
            (up * np.cos(self.roll) - x * np.sin(self.roll)) * near,
        )
        return np.stack((self.centre[0] + right, self.centre[1] - up), -1), depth


class _Canvas:
    """A transparent picture with one light, on which petals, stems and centres are drawn."""

    def __init__(self, size: int, light: float, rng: np.random.Generator) -> None:
        self.pixels = size * SUPERSAMPLING
        self.image = Image.new("RGBA", (self.pixels, self.pixels))
        self.draw = ImageDraw.Draw(self.image)
        self.light = light
        self.rng = rng

    def polygon(self, points: Array, colour: Colour) -> None:
        """Fills an outline (n, 2) in picture widths."""
        self.draw.polygon((points * self.pixels).ravel().tolist(), fill=_rgb(colour))

    def dot(self, point: Array, radius: float, colour: Colour) -> None:
        """A filled disc at (2,), radius in picture widths."""
        (x, y), r = point * self.pixels, radius * self.pixels
        self.draw.ellipse((x - r, y - r, x + r, y + r), fill=_rgb(colour))

    def whorl(
        self,
        pose: _Pose,
        count: int,
        opening: tuple[float, float],
        colours: tuple[Colour, Colour],
        *,
        length: float = 1.0,
        width: float = 0.3,
        inner: float = 0.0,
        shape: tuple[float, float] = (0.6, 0.4),
        notch: float = 0.0,
        turn: float = 0.0,
        shade: float = 1.0,
    ) -> None:
        """A ring of `count` petals around the axis, the far ones first.

        Args:
            pose: Of the blossom.
            count: Petals in the ring.
            opening: Angle in radians between axis and petal at its base and at its tip; pi/2 lies flat.
            colours: Tip and throat.
            length: Of a petal along its curve.
            width: Half of its greatest width.
            inner: Radius at which petals begin.
            shape: Exponents of the outline s^a (1-s)^b; small b is blunt, large b pointed.
            notch: Depth of a notch in the tip.
            turn: Angle of the first petal.
            shade: Factor on all colours.
        """
        rng, (tip, throat) = self.rng, colours
        azimuth = turn + (np.arange(count) + rng.uniform(-0.12, 0.12, count)) * 2 * np.pi / count
        lengths = length * rng.uniform(0.9, 1.06, count)
        petals, depth = pose.project(_petals(azimuth, lengths, width, opening, inner, shape, notch))
        towards = petals[0, :, OUTLINE_POINTS - 1] - petals[0, :, 0]
        facing = np.cos(np.arctan2(-towards[:, 1], towards[:, 0]) - self.light)
        lit = shade * (0.92 + 0.12 * facing + rng.uniform(-0.05, 0.05, count))
        tones = tip + LAYERS[:, 4, None] * (throat - tip)
        fills = _bytes(tones[:, None] * LAYERS[:, 3, None, None] * lit[None, :, None]).tolist()
        corners = (petals * self.pixels).reshape(len(LAYERS), count, -1).tolist()
        for petal in np.argsort(depth[0].mean(1)):
            for layer in range(len(LAYERS)):
                self.draw.polygon(corners[layer][petal], fill=tuple(fills[layer][petal]))

    def disc(self, pose: _Pose, radius: float, height: float, colour: Colour, dots: int) -> None:
        """A domed centre with `dots` florets in the sunflower's spiral."""
        ring = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        rim = np.stack((radius * np.cos(ring), radius * np.sin(ring), np.full(24, height * 0.4)), -1)
        self.polygon(pose.project(rim)[0], colour * 0.6)
        k = np.arange(dots)[::-1] + 0.5  # from the rim inwards
        r, turn = radius * np.sqrt(k / dots), k * 2.39996
        florets = np.stack((r * np.cos(turn), r * np.sin(turn), height * (1 - 0.6 * k / dots)), -1)
        for n, point in enumerate(pose.project(florets)[0]):
            shade = 0.75 + 0.45 * n / dots + self.rng.uniform(-0.12, 0.12)
            self.dot(point, pose.scale * radius * 0.9 / np.sqrt(dots), colour * shade)

    def stem(self, start: Array, end: Array, width: float, leaves: int) -> None:
        """A bent stalk from `start` to `end` in picture widths, with leaves along it."""
        rng, green = self.rng, _jitter(GREENS[self.rng.integers(len(GREENS))], self.rng)
        s = np.linspace(0, 1, 12)[:, None]
        across = np.array([end[1] - start[1], start[0] - end[0]])
        path = start + (end - start) * s + across * rng.uniform(-0.15, 0.15) * s * (1 - s)
        for _ in range(leaves):
            at = path[rng.integers(3, 11)]
            angle = rng.choice([0.5, 2.6]) + rng.uniform(-0.4, 0.4)
            self.leaf(at, angle, rng.uniform(0.15, 0.3), rng.uniform(0.025, 0.05), green)
        side = across / np.hypot(*across) * width
        self.polygon(np.concatenate((path - side, (path + side)[::-1])), green * 0.75)
        self.polygon(np.concatenate((path - side * 0.6, (path + side * 0.2)[::-1])), green * 1.15)

    def leaf(self, base: Array, angle: float, length: float, width: float, green: Colour) -> None:
        """A flat leaf with a rib, pointing along `angle` in the picture."""
        for scale, half, shade in ((1.0, 1.0, 0.8), (0.95, 0.75, 1.05), (0.9, 0.08, 1.3)):
            self.polygon(base + _blade(angle, length * scale, width * half), green * shade)


def _petals(
    azimuth: Array,
    length: Array,
    width: float,
    opening: tuple[float, float],
    inner: float,
    shape: tuple[float, float],
    notch: float,
) -> Array:
    """Outlines (layers, petals, points, 3) of petals leaving the axis at `azimuth`; the middle point is the tip."""
    s = np.linspace(0, 1, OUTLINE_POINTS)
    half = width * _profile(*shape)
    bend = opening[0] + (opening[1] - opening[0]) * s
    out, up = _integral(np.sin(bend)), _integral(np.cos(bend))
    there_and_back = np.concatenate((np.arange(OUTLINE_POINTS), np.arange(OUTLINE_POINTS - 2, -1, -1)))
    side = np.where(np.arange(len(there_and_back)) < OUTLINE_POINTS, 1.0, -1.0)
    at_tip = there_and_back == OUTLINE_POINTS - 1
    layer_length, layer_width, layer_notch = (LAYERS[:, column, None, None] for column in range(3))
    reach = layer_length * length[:, None] * (1 - notch * layer_notch * at_tip)
    radius, height = inner + reach * out[there_and_back], reach * up[there_and_back]
    aside = layer_width * (half[there_and_back] * side)
    cos, sin = np.cos(azimuth)[:, None], np.sin(azimuth)[:, None]
    return np.stack((radius * cos - aside * sin, radius * sin + aside * cos, height), -1)


def _profile(rise: float, fall: float) -> Array:
    """Half width s^rise (1 - s)^fall along a petal, its maximum scaled to 1."""
    s = np.linspace(0, 1, OUTLINE_POINTS)
    width = s**rise * (1 - s) ** fall
    return width / width.max()


def _integral(values: Array) -> Array:
    """Running trapezoid sum over 0..1, from 0."""
    steps = (values[1:] + values[:-1]) / (2 * (len(values) - 1))
    return np.concatenate(([0.0], np.cumsum(steps)))


def _blade(angle: float, length: float, width: float) -> Array:
    """Outline (points, 2) of a leaf from the origin along `angle`."""
    s = np.linspace(0, 1, OUTLINE_POINTS)
    half = width * np.sin(np.pi * s**0.8)
    along, aside = np.concatenate((s, s[::-1])) * length, np.concatenate((half, -half[::-1]))
    cos, sin = np.cos(angle), np.sin(angle)
    return np.stack((along * cos - aside * sin, -(along * sin + aside * cos)), -1)


# The forms. Each draws stem and blossom on the canvas; ranges leave room for pose, count and proportion.


def _facing(rng: np.random.Generator, scale: tuple[float, float], tilt: tuple[float, float]) -> _Pose:
    return _Pose(
        0.5 + rng.uniform(-0.1, 0.1, 2), rng.uniform(*scale), rng.uniform(*tilt), rng.uniform(-np.pi, np.pi)
    )


def _stem_down(canvas: _Canvas, start: Array, rng: np.random.Generator) -> None:
    canvas.stem(start, np.array([start[0] + rng.uniform(-0.25, 0.25), 1.05]), rng.uniform(0.009, 0.014), 2)


def _cross(canvas: _Canvas, rng: np.random.Generator) -> None:
    """Four broad, notched petals."""
    pose, colours = _facing(rng, (0.33, 0.44), (0, 0.7)), _colours(rng, "white red violet")
    _stem_down(canvas, pose.centre, rng)
    canvas.whorl(
        pose, 4, (1.25, rng.uniform(1.35, 1.7)), colours, width=rng.uniform(0.44, 0.54),
        shape=(0.75, 0.22), notch=rng.uniform(0.08, 0.2), turn=rng.uniform(0, 6.3),
    )  # fmt: skip
    canvas.disc(pose, 0.16, 0.12, _jitter((0.80, 0.74, 0.22), rng), 14)


def _cup(canvas: _Canvas, rng: np.random.Generator) -> None:
    """A deep cup of six petals, seen from the side."""
    pose, colours = _facing(rng, (0.40, 0.52), (1.15, 1.5)), _colours(rng, "cream yellow red")
    pose.roll = rng.uniform(-0.5, 0.5)
    axis = np.array([np.sin(pose.roll), -np.cos(pose.roll)]) * pose.scale
    pose.centre = pose.centre + np.array([0.0, 0.12])
    _stem_down(canvas, pose.centre, rng)
    opening, turn = (rng.uniform(1.2, 1.5), rng.uniform(-0.35, 0.05)), rng.uniform(0, 6.3)
    for ring, shade in ((0.5, 0.72), (0.0, 1.0)):
        canvas.whorl(
            pose, 3, opening, colours, length=1.15, width=0.44, shape=(0.5, 0.5),
            turn=turn + ring * 2 * np.pi / 3, shade=shade,
        )  # fmt: skip
    canvas.dot(pose.centre - 0.02 * axis, 0.02, _jitter(GREENS[1], rng))


def _globe(canvas: _Canvas, rng: np.random.Generator) -> None:
    """A ball of many small petals without a visible centre."""
    pose, colours = _facing(rng, (0.32, 0.42), (0, 0.8)), _colours(rng, "orange magenta violet")
    _stem_down(canvas, pose.centre, rng)
    count = rng.integers(11, 15)
    for ring, lean in enumerate(np.linspace(1.75, 0.15, 6)):
        canvas.whorl(
            pose, max(4, round(count * (1 - 0.12 * ring))), (lean, lean - 0.5), colours,
            length=1.05 - 0.1 * ring, width=0.2, shape=(0.8, 0.35), turn=ring * 2.4, shade=0.74 + 0.065 * ring,
        )  # fmt: skip


def _rays(canvas: _Canvas, rng: np.random.Generator) -> None:
    """Many narrow rays around a broad disc."""
    pose, colours = _facing(rng, (0.27, 0.35), (0, 0.8)), _colours(rng, "white yellow orange")
    _stem_down(canvas, pose.centre, rng)
    count, flat = rng.integers(15, 22), rng.uniform(1.4, 1.7)
    for ring, shade in ((0.5, 0.8), (0.0, 1.0)):
        canvas.whorl(
            pose, count, (1.3, flat), colours, length=0.95, width=0.11, inner=0.3, shape=(0.45, 0.3),
            turn=ring * 2 * np.pi / count, shade=shade,
        )  # fmt: skip
    centre = ((0.86, 0.62, 0.10), (0.42, 0.24, 0.10), (0.55, 0.56, 0.16))[rng.integers(3)]
    canvas.disc(pose, 0.42, 0.22, _jitter(centre, rng), 55)


def _spike(canvas: _Canvas, rng: np.random.Generator) -> None:
    """A spire of small blossoms along an upright stem."""
    colours = _colours(rng, "blue magenta pink")
    top = np.array([rng.uniform(0.35, 0.65), rng.uniform(0.04, 0.16)])
    foot = np.array([rng.uniform(0.35, 0.65), 1.05])
    canvas.stem(top, foot, rng.uniform(0.009, 0.013), 2)
    levels, full = rng.integers(9, 12), rng.uniform(0.075, 0.10)
    for level in range(levels):
        s = level / (levels - 1)
        grown = 0.45 + 0.55 * min(1.0, 1.5 * s)
        for side in rng.permutation([-1.0, 0.0, 1.0]):
            place = top + (foot - top) * (0.02 + 0.66 * s)
            place = place + np.array([side * 0.085 * grown, rng.uniform(-0.02, 0.02)])
            pose = _Pose(
                place, full * grown, rng.uniform(0.3, 0.9), np.pi / 2 * side + rng.uniform(-0.4, 0.4)
            )
            canvas.whorl(
                pose, 4, (0.7, 1.3), colours, width=0.42, turn=rng.uniform(0, 6.3),
                shape=(0.7, 0.35), shade=rng.uniform(0.8, 1.05),
            )  # fmt: skip


def _star(canvas: _Canvas, rng: np.random.Generator) -> None:
    """Five or six pointed petals that do not touch."""
    pose, colours = _facing(rng, (0.37, 0.48), (0, 0.7)), _colours(rng, "cream blue pink")
    _stem_down(canvas, pose.centre, rng)
    canvas.whorl(
        pose, rng.integers(5, 7), (1.0, rng.uniform(1.5, 1.9)), colours, width=rng.uniform(0.19, 0.25),
        inner=0.04, shape=(0.7, 0.95), turn=rng.uniform(0, 6.3),
    )  # fmt: skip
    canvas.disc(pose, 0.13, 0.3, _jitter((0.90, 0.72, 0.20), rng), 8)


# In natural order of their names, which is the order of the class folders.
FORMS: dict[str, Callable[[_Canvas, np.random.Generator], None]] = {
    "cross": _cross,
    "cup": _cup,
    "globe": _globe,
    "rays": _rays,
    "spike": _spike,
    "star": _star,
}


def _ground(size: int, rng: np.random.Generator) -> Image.Image:
    """What lies behind: sky, soil, leaves or meadow, with bits of other blossoms, out of focus."""
    kind = rng.integers(4)
    soil, sky = np.array([0.40, 0.29, 0.20]), np.array([0.62, 0.76, 0.90])
    green = _jitter(GREENS[rng.integers(len(GREENS))], rng)
    top, bottom = ((sky, green), (soil * 0.8, soil * 1.15), (green * 0.5, green * 0.8), (green, green * 0.7))[
        kind
    ]
    ramp = np.linspace(0, 1, size)[:, None, None] ** rng.uniform(0.6, 2.0)
    image = Image.fromarray(
        _bytes(np.broadcast_to(_jitter(top, rng) * (1 - ramp) + bottom * ramp, (size, size, 3)))
    )
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(14, 34))):
        base = rng.uniform(-0.1, 1.1, 2) * (1, 1) if kind else rng.uniform((-0.1, 0.5), (1.1, 1.2))
        tone = _jitter(GREENS[rng.integers(len(GREENS))] if rng.random() < 0.75 else soil, rng)
        tone = tone * rng.uniform(0.6, 1.3)
        if kind == 2:  # broad leaves in all directions
            blade = _blade(rng.uniform(0, 2 * np.pi), rng.uniform(0.2, 0.5), rng.uniform(0.06, 0.14))
        elif kind == 1 and rng.random() < 0.7:  # clods and pebbles
            tone = _jitter(soil, rng) * rng.uniform(0.6, 1.5)
            blade = _blade(rng.uniform(0, np.pi), rng.uniform(0.05, 0.18), rng.uniform(0.03, 0.07))
        else:  # blades of grass
            blade = _blade(rng.uniform(0.9, 2.3), rng.uniform(0.3, 0.8), rng.uniform(0.01, 0.03))
        draw.polygon(((base + blade) * size).ravel().tolist(), fill=_rgb(tone))
    names = list(PETALS)
    for _ in range(int(rng.integers(0, 7))):  # petals of neighbours
        (tip, _), base = PETALS[names[rng.integers(len(names))]], rng.uniform(0, 1, 2)
        for angle in rng.uniform(0, 2 * np.pi, rng.integers(1, 4)):
            blade = _blade(angle, rng.uniform(0.06, 0.16), rng.uniform(0.02, 0.05))
            draw.polygon(((base + blade) * size).ravel().tolist(), fill=_rgb(_jitter(tip, rng) * 0.85))
    return image.filter(ImageFilter.GaussianBlur(rng.uniform(0.008, 0.045) * size))


def _lit(picture: Image.Image, light: float, rng: np.random.Generator) -> Image.Image:
    """Sunlight across the picture: direction, warmth, exposure, contrast and a little sensor noise."""
    values = np.asarray(picture, np.float64) / 255
    axis = np.linspace(-1, 1, len(values))
    slope = axis[None, :] * np.cos(light) - axis[:, None] * np.sin(light)
    warmth = rng.uniform(-0.07, 0.07)
    gain = rng.uniform(0.8, 1.2) * (1 + rng.uniform(0, 0.22) * slope)
    values = values * gain[:, :, None] * (1 + warmth, 1, 1 - warmth)
    values = values + rng.uniform(0.002, 0.02) * rng.standard_normal(values.shape)
    return Image.fromarray(_bytes(values))


def _colours(rng: np.random.Generator, names: str) -> tuple[Colour, Colour]:
    """Tip and throat of one of the named petal colours, with the variation of a flower bed."""
    choice = names.split()
    tip, throat = PETALS[choice[rng.integers(len(choice))]]
    return _jitter(tip, rng), _jitter(throat, rng)


def _jitter(colour: Array | tuple[float, float, float], rng: np.random.Generator) -> Colour:
    return np.asarray(colour) * rng.uniform(0.88, 1.12) + rng.uniform(-0.04, 0.04, 3)


def _rgb(colour: Colour) -> tuple[int, int, int]:
    red, green, blue = _bytes(colour).tolist()
    return red, green, blue


def _bytes(values: Array) -> NDArray[np.uint8]:
    return (values.clip(0, 1) * 255 + 0.5).astype(np.uint8)
