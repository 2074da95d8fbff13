"""Drawings of flowers: petals, blossoms, stems and leaves under one light; lengths in image widths, y down.

A blossom is built around its own z axis, in units of its petals' length, and projected into the image by a `Pose`.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Array = NDArray[np.float64]
Color = Array  # red, green, blue in 0..1

OUTLINE_POINTS = 9  # along each side of a petal or leaf
ALONG = np.linspace(0, 1, OUTLINE_POINTS)  # from base to tip
THERE_AND_BACK = np.concatenate((np.arange(OUTLINE_POINTS), np.arange(OUTLINE_POINTS - 2, -1, -1)))
SIDE = np.where(np.arange(len(THERE_AND_BACK)) < OUTLINE_POINTS, 1.0, -1.0)  # one edge, then the other
BLADE = np.stack((ALONG, np.sin(np.pi * ALONG**0.8)), -1)[THERE_AND_BACK]  # a leaf along x, 1 long and wide
BLADE[:, 1] *= SIDE
RIM_LEAF_RIB = ((1.0, 1.0, 0.8), (0.95, 0.75, 1.05), (0.9, 0.08, 1.3))  # of length, of width, brightness

# A petal is four shapes on top of each other. Columns: fraction of its length, of its width and of its notch,
# brightness, and blend from the color of the tip to that of the throat.
LAYERS = np.array(
    [
        [1.00, 1.00, 1.0, 0.68, 0.0],  # a dark rim
        [0.95, 0.80, 1.0, 0.94, 0.0],
        [0.85, 0.45, 0.0, 1.06, 0.0],  # a lit middle
        [0.45, 0.50, 0.0, 1.00, 0.6],
    ]
)


@dataclass(frozen=True)
class Pose:
    """Position and direction of a blossom."""

    center: Array  # of the blossom in the image
    scale: float  # image widths per unit of the blossom
    tilt: float  # radians between the blossom's axis and the line of sight
    roll: float  # direction of the tilt in the image; 0 is upwards

    def project(self, points: Array) -> tuple[Array, Array]:
        """Projects points (..., 3) around the axis: places (..., 2) in the image and nearness (...)."""
        x, y, z = np.moveaxis(points, -1, 0)
        up = y * np.cos(self.tilt) + z * np.sin(self.tilt)
        nearness = z * np.cos(self.tilt) - y * np.sin(self.tilt)
        scale = self.scale / (1 - 0.18 * nearness)
        right = (x * np.cos(self.roll) + up * np.sin(self.roll)) * scale
        up = (up * np.cos(self.roll) - x * np.sin(self.roll)) * scale
        return np.stack((self.center[0] + right, self.center[1] - up), -1), nearness


@dataclass(frozen=True)
class Petal:
    """The shape of the petals of a whorl; lengths in units of the blossom, angles in radians."""

    opening: tuple[float, float]  # between axis and petal, at its base and at its tip; pi/2 lies flat
    colors: tuple[Color, Color]  # of its tip and of its throat
    length: float = 1.0  # along its curve
    width: float = 0.3  # half of the maximum
    inner: float = 0.0  # radius at which it begins
    shape: tuple[float, float] = (0.6, 0.4)  # exponents of the outline s^a (1 - s)^b; b near 1 is pointed
    notch: float = 0.0  # depth of a notch in the tip, as a fraction of the length


class Drawing:
    """Draws on a square image in place, under light from an angle in the image; `rng` varies all shapes."""

    def __init__(self, image: Image.Image, light: float, rng: np.random.Generator) -> None:
        self.draw, self.pixels = ImageDraw.Draw(image), image.width
        self.light, self.rng = light, rng

    def polygon(self, points: Array, color: Color) -> None:
        """Fills an outline (n, 2)."""
        self.draw.polygon((points * self.pixels).ravel().tolist(), fill=tuple(to_bytes(color).tolist()))

    def leaf(self, base: Array, angle: float, length: float, width: float, color: Color) -> None:
        """A flat leaf from `base` along `angle`."""
        cos, sin = np.cos(angle), np.sin(angle)
        self.polygon(base + BLADE @ [[length * cos, -length * sin], [-width * sin, -width * cos]], color)

    def whorl(self, pose: Pose, count: int, petal: Petal, turn: float = 0.0, shade: float = 1.0) -> None:
        """A ring of `count` petals around the axis, starting at angle `turn`; far petals are drawn first."""
        rng = self.rng
        azimuth = turn + (np.arange(count) + rng.uniform(-0.12, 0.12, count)) * 2 * np.pi / count
        outlines, nearness = pose.project(_petals(petal, azimuth, rng.uniform(0.9, 1.06, count)))
        towards = outlines[0, :, OUTLINE_POINTS - 1] - outlines[0, :, 0]
        facing = np.cos(np.arctan2(-towards[:, 1], towards[:, 0]) - self.light)
        lit = shade * (0.92 + 0.12 * facing + rng.uniform(-0.05, 0.05, count))
        tip, throat = petal.colors
        tones = (tip + LAYERS[:, 4, None] * (throat - tip)) * LAYERS[:, 3, None]
        fills = to_bytes(tones[:, None] * lit[None, :, None]).tolist()
        corners = (outlines * self.pixels).reshape(len(LAYERS), count, -1).tolist()
        for number in np.argsort(nearness[0].mean(1)):
            for layer in range(len(LAYERS)):
                self.draw.polygon(corners[layer][number], fill=tuple(fills[layer][number]))

    def disc(self, pose: Pose, radius: float, height: float, color: Color, florets: int) -> None:
        """A domed center with florets in the spiral of a seed head."""
        ring = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        rim = np.stack((radius * np.cos(ring), radius * np.sin(ring), np.full(24, height * 0.4)), -1)
        self.polygon(pose.project(rim)[0], color * 0.6)
        inwards = np.arange(florets)[::-1] + 0.5
        r, turn = radius * np.sqrt(inwards / florets), inwards * 2.39996  # the golden angle
        places = np.stack((r * np.cos(turn), r * np.sin(turn), height * (1 - 0.6 * inwards / florets)), -1)
        radius = pose.scale * radius * 0.9 / np.sqrt(florets) * self.pixels
        for number, (x, y) in enumerate(pose.project(places)[0] * self.pixels):
            shade = 0.75 + 0.45 * number / florets + self.rng.uniform(-0.12, 0.12)
            circle = (x - radius, y - radius, x + radius, y + radius)
            self.draw.ellipse(circle, fill=tuple(to_bytes(color * shade).tolist()))

    def stem(self, start: Array, end: Array, width: float, green: Color) -> None:
        """A bent stalk between two points, with two leaves."""
        rng = self.rng
        s = np.linspace(0, 1, 12)[:, None]
        across = np.array([end[1] - start[1], start[0] - end[0]])
        path = start + (end - start) * s + across * rng.uniform(-0.15, 0.15) * s * (1 - s)
        for _ in range(2):
            base, angle = path[rng.integers(3, 11)], rng.choice([0.5, 2.6]) + rng.uniform(-0.4, 0.4)
            length, half = rng.uniform(0.15, 0.3), rng.uniform(0.025, 0.05)
            for long, wide, shade in RIM_LEAF_RIB:
                self.leaf(base, angle, length * long, half * wide, green * shade)
        side = across / np.hypot(*across) * width
        for left, right, shade in ((1, 1, 0.75), (0.6, 0.2, 1.15)):  # the stalk and its lit part
            self.polygon(np.concatenate((path - side * left, (path + side * right)[::-1])), green * shade)


def _petals(petal: Petal, azimuth: Array, stretch: Array) -> Array:
    """Outlines (layers, petals, points, 3) of petals at `azimuth`; the tip is the middle point."""
    rise, fall = petal.shape
    half = ALONG**rise * (1 - ALONG) ** fall
    bend = petal.opening[0] + (petal.opening[1] - petal.opening[0]) * ALONG
    slopes = np.stack((np.sin(bend), np.cos(bend)))  # integrated by trapezoids
    steps = (slopes[:, 1:] + slopes[:, :-1]) / (2 * (OUTLINE_POINTS - 1))
    out, up = np.pad(steps.cumsum(1), ((0, 0), (1, 0)))
    at_tip = THERE_AND_BACK == OUTLINE_POINTS - 1
    layer_length, layer_width, layer_notch = (LAYERS[:, column, None, None] for column in range(3))
    reach = layer_length * petal.length * stretch[:, None] * (1 - petal.notch * layer_notch * at_tip)
    radius, height = petal.inner + reach * out[THERE_AND_BACK], reach * up[THERE_AND_BACK]
    aside = layer_width * petal.width / half.max() * (half[THERE_AND_BACK] * SIDE)
    cos, sin = np.cos(azimuth)[:, None], np.sin(azimuth)[:, None]
    return np.stack((radius * cos - aside * sin, radius * sin + aside * cos, height), -1)


def to_bytes(values: Array) -> NDArray[np.uint8]:
    """Scales 0..1 to 0..255, clipped."""
    return (values.clip(0, 1) * 255 + 0.5).astype(np.uint8)
