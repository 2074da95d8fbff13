"""The demo dataset: small drawings of invented flowers, whose classes are forms (`cup`, `rays`, ...), not species.

Every color occurs in two forms, which share backgrounds, poses and light: the mean color does not reveal the class.
"""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from flowers_torch.data.sources.drawing import Array, Color, Drawing, Petal, Pose, to_bytes
from flowers_torch.errors import UsageError, printable
from flowers_torch.files.system import child_environment, processes_here, usable_cores

RGB = tuple[float, float, float]
Range = tuple[float, float]
IMAGES_PER_PROCESS = 200  # at least; 100 are drawn in about a second
SUPERSAMPLING = 3  # flowers are drawn this much larger and averaged down, for smooth edges
TURN = 2 * np.pi

# Colors of petals by name: tip and throat.
PETALS: dict[str, tuple[RGB, RGB]] = {
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
GREENS: tuple[RGB, ...] = (
    (0.20, 0.40, 0.12), (0.33, 0.52, 0.17), (0.14, 0.32, 0.16), (0.45, 0.58, 0.26), (0.26, 0.42, 0.24),
)  # fmt: skip
SOIL, SKY = (0.40, 0.29, 0.20), (0.62, 0.76, 0.90)


def draw_demo(folder: Path, classes: int = 6, per_class: int = 150, size: int = 96, seed: int = 0) -> None:
    """Draws `classes` folders, in the order of `FORMS`, of `per_class` JPEG images of `size` pixels.

    An image depends only on (seed, class, index, size), so a larger dataset contains the smaller one, and several
    processes may divide the work.
    Numbers out of range and a folder that is not empty are a `UsageError`.
    """
    if not 2 <= classes <= len(FORMS):
        raise UsageError(f"demo data of {classes} classes", f"choose 2 to {len(FORMS)}")
    if per_class < 1 or size < 16:
        raise UsageError(f"demo data of {per_class} images of {size} pixels", "choose at least 1 and 16")
    if folder.exists() and any(folder.iterdir()):
        raise UsageError(f"demo data would be mixed into {printable(folder)}", "name a new folder")
    for form in list(FORMS)[:classes]:
        (folder / form).mkdir(parents=True)
    count = min(max(1, usable_cores() // processes_here()), max(1, classes * per_class // IMAGES_PER_PROCESS))
    shards = [(classes, per_class, size, seed, start, count) for start in range(count)]
    helpers = [_start_drawing(folder, shard) for shard in shards[1:]]
    try:
        _draw(folder, *shards[0])
        for helper, shard in zip(helpers, shards[1:], strict=True):
            if helper.wait():  # it could not start, or ran out of memory
                _draw(folder, *shard)
    finally:
        for helper in helpers:
            with helper:
                helper.kill()


def _start_drawing(folder: Path, shard: tuple[int, ...]) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "flowers_torch.data.sources.demo", str(folder.absolute()), *map(str, shard)]
    quiet = subprocess.DEVNULL  # its traceback at Ctrl-C
    return subprocess.Popen(command, stdin=quiet, stderr=quiet, env=child_environment())


def _draw(folder: Path, classes: int, per_class: int, size: int, seed: int, start: int, count: int) -> None:
    """Draws one of `count` shards: of each class every so many images from `start` on."""
    for number, form in enumerate(list(FORMS)[:classes]):
        for index in range(start, per_class, count):
            image = draw_picture(form, size, np.random.default_rng([seed, number, index]))
            image.save(folder / form / f"{form}_{index:04d}.jpg", quality=92, subsampling=0)


def draw_picture(form: str, size: int, rng: np.random.Generator) -> Image.Image:
    """Draws one RGB image of a flower; `form` is a key of `FORMS`, and `size` is the side in pixels."""
    light = rng.uniform(0, TURN)
    image = _background(size, rng)
    flower = Image.new("RGBA", (size * SUPERSAMPLING, size * SUPERSAMPLING))
    FORMS[form](Drawing(flower, light, rng), rng)
    flower = flower.reduce(SUPERSAMPLING)
    if rng.random() < 0.3:  # the camera is not always in focus
        flower = flower.filter(ImageFilter.GaussianBlur(rng.uniform(0.003, 0.008) * size))
    shadow = flower.getchannel("A").filter(ImageFilter.GaussianBlur(0.04 * size))
    strength, reach = rng.uniform(0.2, 0.6), rng.uniform(0.02, 0.06) * size
    place = (round(-reach * np.cos(light)), round(reach * np.sin(light)))
    image.paste((8, 12, 10), place, shadow.point(lambda value: value * strength))
    image.paste(flower, (0, 0), flower)
    return _light(image, light, rng)


# Each form draws a stem and a blossom. The ranges are the variation within a form.


def _cross(drawing: Drawing, rng: np.random.Generator) -> None:
    """Four broad, notched petals."""
    pose, colors = _blossom(drawing, ("white", "red", "violet"), (0.33, 0.44), (0, 0.6))
    opening, width, notch = (1.25, rng.uniform(1.35, 1.7)), rng.uniform(0.44, 0.54), rng.uniform(0.08, 0.2)
    drawing.whorl(pose, 4, Petal(opening, colors, 1, width, 0, (0.75, 0.22), notch), rng.uniform(0, TURN))
    drawing.disc(pose, 0.16, 0.12, _vary((0.80, 0.74, 0.22), rng), florets=14)


def _cup(drawing: Drawing, rng: np.random.Generator) -> None:
    """A deep cup of six petals, seen from the side."""
    pose, colors = _blossom(drawing, ("red", "yellow", "cream"), (0.40, 0.52), (1.15, 1.5), 0.5, y=0.62)
    opening = (rng.uniform(1.2, 1.5), rng.uniform(-0.35, 0.05))
    petal = Petal(opening, colors, length=1.15, width=0.44, shape=(0.5, 0.5))
    turn = rng.uniform(0, TURN)
    drawing.whorl(pose, 3, petal, turn + np.pi / 3, shade=0.72)
    drawing.whorl(pose, 3, petal, turn)


def _globe(drawing: Drawing, rng: np.random.Generator) -> None:
    """A ball of many small petals without a visible center."""
    pose, colors = _blossom(drawing, ("orange", "magenta", "violet"), (0.32, 0.42), (0, 0.7))
    count = rng.integers(11, 15)
    for ring, lean in enumerate(np.linspace(1.75, 0.15, 6)):  # from the outermost ring inwards
        petal = Petal((lean, lean - 0.5), colors, 1.05 - 0.1 * ring, width=0.2, shape=(0.8, 0.35))
        drawing.whorl(pose, round(count * (1 - 0.12 * ring)), petal, 2.4 * ring, shade=0.74 + 0.065 * ring)


def _rays(drawing: Drawing, rng: np.random.Generator) -> None:
    """Many narrow rays around a broad dark disc."""
    pose, colors = _blossom(drawing, ("yellow", "white", "orange"), (0.28, 0.36), (0, 0.7))
    count = int(rng.integers(15, 22))
    petal = Petal((1.3, rng.uniform(1.4, 1.7)), colors, 0.95, width=0.11, inner=0.3, shape=(0.45, 0.3))
    drawing.whorl(pose, count, petal, np.pi / count, shade=0.8)
    drawing.whorl(pose, count, petal)
    center = ((0.42, 0.24, 0.10), (0.30, 0.17, 0.10), (0.50, 0.36, 0.10))[rng.integers(3)]
    drawing.disc(pose, 0.42, 0.22, _vary(center, rng), florets=55)


def _spike(drawing: Drawing, rng: np.random.Generator) -> None:
    """Small blossoms along an upright stem."""
    top = np.array([rng.uniform(0.35, 0.65), rng.uniform(0.04, 0.16)])
    foot = np.array([rng.uniform(0.35, 0.65), 1.05])
    drawing.stem(top, foot, rng.uniform(0.009, 0.013), _green(rng))
    petal = Petal((0.7, 1.3), _petal_colors(rng, "blue", "magenta", "pink"), width=0.42, shape=(0.7, 0.35))
    full = rng.uniform(0.075, 0.10)
    for s in np.linspace(0, 1, rng.integers(9, 12)):
        grown = 0.45 + 0.55 * min(1.0, 1.5 * s)
        for side in rng.permutation([-1.0, 0.0, 1.0]):
            place = top + (foot - top) * (0.02 + 0.66 * s)
            place = place + np.array([side * 0.085 * grown, rng.uniform(-0.02, 0.02)])
            roll = side * np.pi / 2 + rng.uniform(-0.4, 0.4)
            pose = Pose(place, full * grown, rng.uniform(0.3, 0.9), roll)
            drawing.whorl(pose, 4, petal, rng.uniform(0, TURN), shade=rng.uniform(0.8, 1.05))


def _star(drawing: Drawing, rng: np.random.Generator) -> None:
    """Five or six pointed petals that do not touch."""
    pose, colors = _blossom(drawing, ("cream", "blue", "pink"), (0.37, 0.48), (0, 0.6))
    opening, width = (1.0, rng.uniform(1.5, 1.9)), rng.uniform(0.19, 0.25)
    petal = Petal(opening, colors, width=width, inner=0.04, shape=(0.7, 0.95))
    drawing.whorl(pose, int(rng.integers(5, 7)), petal, rng.uniform(0, TURN))
    drawing.disc(pose, 0.13, 0.3, _vary((0.90, 0.72, 0.20), rng), florets=8)


# In the order of class folders.
FORMS: dict[str, Callable[[Drawing, np.random.Generator], None]]
FORMS = {form.__name__[1:]: form for form in (_cross, _cup, _globe, _rays, _spike, _star)}


def _blossom(
    drawing: Drawing, colors: tuple[str, ...], scale: Range, tilt: Range, roll: float = np.pi, y: float = 0.5
) -> tuple[Pose, tuple[Color, Color]]:
    """Draws a stem for a blossom near (0.5, y). Returns the pose and the colors of the blossom."""
    rng = drawing.rng
    center = (0.5, y) + rng.uniform(-0.1, 0.1, 2)
    pose = Pose(center, rng.uniform(*scale), rng.uniform(*tilt), rng.uniform(-roll, roll))
    foot = np.array([center[0] + rng.uniform(-0.25, 0.25), 1.05])
    drawing.stem(center, foot, rng.uniform(0.009, 0.014), _green(rng))
    return pose, _petal_colors(rng, *colors)


def _background(size: int, rng: np.random.Generator) -> Image.Image:
    """An unfocused background: sky, soil, leaves or meadow, and petals of other blossoms."""
    kind = ("sky", "soil", "leaves", "meadow")[rng.integers(4)]
    green, soil = _green(rng), np.array(SOIL)
    top, bottom = {
        "sky": (np.array(SKY), green),
        "soil": (soil * 0.8, soil * 1.15),
        "leaves": (green * 0.5, green * 0.8),
        "meadow": (green, green * 0.7),
    }[kind]
    ramp = np.linspace(0, 1, size)[:, None, None] ** rng.uniform(0.6, 2.0)
    ramp = _vary(top, rng) * (1 - ramp) + bottom * ramp
    image = Image.fromarray(to_bytes(np.broadcast_to(ramp, (size, size, 3))))
    drawing = Drawing(image, 0, rng)
    for _ in range(rng.integers(14, 34)):
        base = rng.uniform((-0.1, 0.5 if kind == "sky" else -0.1), (1.1, 1.1))
        tone = (_green(rng) if rng.random() < 0.75 else _vary(SOIL, rng)) * rng.uniform(0.6, 1.3)
        angle, length, width = (0.9, 2.3), (0.3, 0.8), (0.01, 0.03)  # blades of grass
        if kind == "leaves":  # broad and in all directions
            angle, length, width = (0, TURN), (0.2, 0.5), (0.06, 0.14)
        elif kind == "soil" and rng.random() < 0.7:  # clods and pebbles
            tone = _vary(SOIL, rng) * rng.uniform(0.6, 1.5)
            angle, length, width = (0, np.pi), (0.05, 0.18), (0.03, 0.07)
        drawing.leaf(base, rng.uniform(*angle), rng.uniform(*length), rng.uniform(*width), tone)
    for _ in range(rng.integers(0, 7)):  # petals of neighbors
        base, (tip, _) = rng.uniform(0, 1, 2), _petal_colors(rng, *PETALS)
        for direction in rng.uniform(0, TURN, rng.integers(1, 4)):
            drawing.leaf(base, direction, rng.uniform(0.06, 0.16), rng.uniform(0.02, 0.05), tip * 0.85)
    return image.filter(ImageFilter.GaussianBlur(rng.uniform(0.008, 0.045) * size))


def _light(image: Image.Image, light: float, rng: np.random.Generator) -> Image.Image:
    """Adds exposure, falloff away from the light, color temperature and sensor noise."""
    values = np.asarray(image, np.float64) / 255
    axis = np.linspace(-1, 1, len(values))
    slope = axis[None, :] * np.cos(light) - axis[:, None] * np.sin(light)
    gain = rng.uniform(0.8, 1.2) * (1 + rng.uniform(0, 0.22) * slope)
    warmth = rng.uniform(-0.07, 0.07)
    values = values * gain[:, :, None] * (1 + warmth, 1, 1 - warmth)
    noise = rng.uniform(0.002, 0.02) * rng.standard_normal(values.shape)
    return Image.fromarray(to_bytes(values + noise))


def _petal_colors(rng: np.random.Generator, *names: str) -> tuple[Color, Color]:
    """Tip and throat in one of the named colors, slightly varied."""
    tip, throat = PETALS[names[rng.integers(len(names))]]
    return _vary(tip, rng), _vary(throat, rng)


def _green(rng: np.random.Generator) -> Color:
    return _vary(GREENS[rng.integers(len(GREENS))], rng)


def _vary(color: Array | RGB, rng: np.random.Generator) -> Color:
    return np.asarray(color) * rng.uniform(0.88, 1.12) + rng.uniform(-0.04, 0.04, 3)


if __name__ == "__main__":
    _draw(Path(sys.argv[1]), *map(int, sys.argv[2:]))
