"""Keras's `ImageDataGenerator`, transform by transform: slow, obvious, and equal to it within a grey level.

The reference that the faster augmentations are tested against, and the way to repeat an experiment of a Keras
tutorial exactly. Images are float arrays (height, width, channels) in Keras's value range, 0..255 before
`rescale`. Source: `keras/src/legacy/preprocessing/image.py`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance

FILL_MODES = ("constant", "nearest", "reflect", "wrap")
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CAFFE_MEAN_BGR = (103.939, 116.779, 123.68)


@dataclass(frozen=True)
class Affine:
    """Rotation, shift, shear and zoom, multiplied in this order.

    Attributes:
        theta: Rotation in degrees.
        tx: Shift in pixels along the columns; positive moves the content to the left.
        ty: Shift in pixels along the rows; positive moves it up.
        shear: In degrees.
        zx: Zoom along the columns; above 1 shows more than the photo.
        zy: Zoom along the rows.
    """

    theta: float = 0.0
    tx: float = 0.0
    ty: float = 0.0
    shear: float = 0.0
    zx: float = 1.0
    zy: float = 1.0

    def matrix(self, height: int, width: int) -> np.ndarray:
        """(2, 3): where in the source (row, column) an output pixel (row, column, 1) is read from."""
        theta, shear = math.radians(self.theta), math.radians(self.shear)
        rotation = [[math.cos(theta), -math.sin(theta), 0], [math.sin(theta), math.cos(theta), 0], [0, 0, 1]]
        shift = [[1, 0, self.tx], [0, 1, self.ty], [0, 0, 1]]
        shearing = [[1, -math.sin(shear), 0], [0, math.cos(shear), 0], [0, 0, 1]]
        zoom = [[self.zx, 0, 0], [0, self.zy, 0], [0, 0, 1]]
        # Trap: Keras takes the height's half for x and the width's for y, so that a photo that is not square
        # turns around another point than its centre. Parity means to do the same.
        around = np.array([[1, 0, height / 2 - 0.5], [0, 1, width / 2 - 0.5], [0, 0, 1]])
        xy = around @ rotation @ shift @ shearing @ zoom @ np.linalg.inv(around)
        return xy[[1, 0]][:, [1, 0, 2]]  # from (x, y) to (row, column)


def apply_affine(
    image: np.ndarray, affine: Affine, fill_mode: str = "nearest", cval: float = 0.0
) -> np.ndarray:
    """Moves an image; what lies outside of it is filled by `fill_mode`, one of `FILL_MODES`.

    `constant` fills with `cval`, `nearest` repeats the border, `reflect` mirrors it (border pixels twice),
    `wrap` continues at the other side with a period one short of the side, as SciPy's does.
    """
    height, width = image.shape[:2]
    rows, columns = np.mgrid[:height, :width]
    matrix = affine.matrix(height, width)
    at = np.einsum("ij,jhw->ihw", matrix, np.stack([rows, columns, np.ones_like(rows)]))
    return sample_bilinear(image, at[0], at[1], fill_mode, cval)


def sample_bilinear(
    image: np.ndarray, rows: np.ndarray, columns: np.ndarray, fill_mode: str, cval: float
) -> np.ndarray:
    """Values of an image (H, W, C) at fractional places (h, w): an image (h, w, C)."""
    if fill_mode not in FILL_MODES:
        raise ValueError(f"unknown fill mode {fill_mode!r}; there are {', '.join(FILL_MODES)}")
    height, width = image.shape[:2]
    outside = (rows < 0) | (rows > height - 1) | (columns < 0) | (columns > width - 1)
    top, bottom, down = _neighbours(rows, height, fill_mode)
    left, right, across = _neighbours(columns, width, fill_mode)
    down, across = down[..., None], across[..., None]
    upper = image[top, left] * (1 - across) + image[top, right] * across
    lower = image[bottom, left] * (1 - across) + image[bottom, right] * across
    values = upper * (1 - down) + lower * down
    if fill_mode == "constant":
        values = np.where(outside[..., None], cval, values)
    return values.astype(np.float32)


def _neighbours(places: np.ndarray, size: int, fill_mode: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The two pixels around each place along an axis, and the weight of the second."""
    if fill_mode == "wrap":
        places = np.where((places < 0) | (places > size - 1), places % max(size - 1, 1), places)
    elif fill_mode != "reflect":
        places = places.clip(0, size - 1)
    first = np.floor(places).astype(int)
    second = first + 1
    if fill_mode == "reflect":  # ... 1 0 | 0 1 2 ... n-1 | n-1 n-2 ...
        first, second = (np.minimum(i % (2 * size), 2 * size - 1 - i % (2 * size)) for i in (first, second))
    else:
        second = np.minimum(second, size - 1)
    return first, second, places - np.floor(places)


def shift_channels(image: np.ndarray, intensity: float) -> np.ndarray:
    """Adds a value to all channels, cut off at the image's own lowest and highest value."""
    return (image + np.float32(intensity)).clip(image.min(), image.max())


def change_brightness(image: np.ndarray, factor: float) -> np.ndarray:
    """Multiplies the brightness. As in Keras, the image is first stretched to the full range 0..255."""
    stretched = image - image.min()
    stretched = stretched / max(float(stretched.max()), 1e-12) * 255
    return np.asarray(
        ImageEnhance.Brightness(Image.fromarray(stretched.astype(np.uint8))).enhance(factor), dtype=np.float32
    )


@dataclass(frozen=True)
class KerasAugment:
    """What `ImageDataGenerator` draws for an image, by its parameters.

    Attributes:
        rotation_range: Degrees to either side.
        width_shift_range: Below 1 a share of the width, else pixels, to either side.
        height_shift_range: The same of the height.
        shear_range: Degrees to either side.
        zoom_range: z for 1 - z .. 1 + z, drawn for each axis; or (lowest, highest).
        channel_shift_range: Grey levels to either side.
        brightness_range: (lowest, highest) factor, or None.
        horizontal_flip: Mirror half of the images.
        vertical_flip: Turn half of them upside down.
        fill_mode: See `apply_affine`.
        cval: Value for `fill_mode="constant"`.
    """

    rotation_range: float = 0.0
    width_shift_range: float = 0.0
    height_shift_range: float = 0.0
    shear_range: float = 0.0
    zoom_range: float | tuple[float, float] = 0.0
    channel_shift_range: float = 0.0
    brightness_range: tuple[float, float] | None = None
    horizontal_flip: bool = False
    vertical_flip: bool = False
    fill_mode: str = "nearest"
    cval: float = 0.0

    def draw_affine(self, generator: np.random.Generator, height: int, width: int) -> Affine:
        """A random `Affine` within the ranges."""

        def either_side(limit: float) -> float:
            return float(generator.uniform(-limit, limit))

        # Keras draws tx from the height's range, which moves photos sideways by shares of their height; here
        # the width's range moves sideways.
        tall, wide = self.height_shift_range, self.width_shift_range
        zoom = self.zoom_range
        low, high = (1 - zoom, 1 + zoom) if isinstance(zoom, float | int) else zoom
        return Affine(
            theta=either_side(self.rotation_range),
            tx=either_side(wide * width if wide < 1 else wide),
            ty=either_side(tall * height if tall < 1 else tall),
            shear=either_side(self.shear_range),
            zx=float(generator.uniform(low, high)),
            zy=float(generator.uniform(low, high)),
        )

    def __call__(self, image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """A random variant of an image (H, W, C) in 0..255, float32, of the same shape."""
        affine = self.draw_affine(generator, *image.shape[:2])
        image = apply_affine(image.astype(np.float32), affine, self.fill_mode, self.cval)
        if self.channel_shift_range:
            limit = self.channel_shift_range
            image = shift_channels(image, float(generator.uniform(-limit, limit)))
        if self.horizontal_flip and generator.random() < 0.5:
            image = image[:, ::-1]
        if self.vertical_flip and generator.random() < 0.5:
            image = image[::-1]
        if self.brightness_range is not None:
            image = change_brightness(image, float(generator.uniform(*self.brightness_range)))
        return image


@dataclass
class Standardizer:
    """`fit` and `standardize` of `ImageDataGenerator`: centring, scaling and whitening.

    Here `fit` applies `rescale` as the call does. In Keras it does not, so that there its statistics fit only
    images that were scaled beforehand.

    Attributes:
        rescale: Factor on every value.
        samplewise_center: Subtract the image's own mean.
        samplewise_std: Divide by the image's own standard deviation.
        featurewise_center: Subtract the set's mean of each channel.
        featurewise_std: Divide by the set's standard deviation of each channel.
        zca_epsilon: Whiten with this epsilon; None for no whitening.
    """

    rescale: float = 1.0
    samplewise_center: bool = False
    samplewise_std: bool = False
    featurewise_center: bool = False
    featurewise_std: bool = False
    zca_epsilon: float | None = None
    mean: np.ndarray | None = None
    std: np.ndarray | None = None
    whitening: np.ndarray | None = None

    def fit(self, images: np.ndarray) -> "Standardizer":
        """Takes statistics of a set (N, H, W, C); returns itself."""
        images = images.astype(np.float32) * np.float32(self.rescale)
        if self.featurewise_center:
            self.mean = images.mean(axis=(0, 1, 2))
            images -= self.mean
        if self.featurewise_std:
            self.std = images.std(axis=(0, 1, 2))
            images /= self.std + 1e-6
        if self.zca_epsilon is not None:
            flat = images.reshape(len(images), -1)
            vectors, sizes, _ = np.linalg.svd(flat.T, full_matrices=False)
            self.whitening = (vectors * (math.sqrt(len(flat)) / (sizes + self.zca_epsilon))) @ vectors.T
        return self

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Standardizes an image (H, W, C)."""
        image = image.astype(np.float32) * np.float32(self.rescale)
        if self.samplewise_center:
            image = image - image.mean()
        if self.samplewise_std:
            image = image / (image.std() + 1e-6)
        for wanted, value in (
            (self.featurewise_center, self.mean),
            (self.featurewise_std, self.std),
            (self.zca_epsilon is not None, self.whitening),
        ):
            if wanted and value is None:
                raise ValueError("call fit on a set of images first")
        if self.mean is not None:
            image = image - self.mean
        if self.std is not None:
            image = image / (self.std + 1e-6)
        if self.whitening is not None:
            image = (image.reshape(-1) @ self.whitening).reshape(image.shape)
        return image


def preprocess_input(image: np.ndarray, mode: str) -> np.ndarray:
    """Scales RGB values 0..255 (..., 3) as `keras.applications` does.

    Args:
        image: Any number of leading axes.
        mode: `tf` gives -1..1; `torch` gives 0..1 normalised by ImageNet's mean and deviation; `caffe` gives
            BGR with ImageNet's mean subtracted, not scaled.
    """
    image = image.astype(np.float32)
    if mode == "tf":
        return image / 127.5 - 1
    if mode == "torch":
        return (image / 255 - _row(IMAGENET_MEAN)) / _row(IMAGENET_STD)
    if mode == "caffe":
        return image[..., ::-1] - _row(CAFFE_MEAN_BGR)
    raise ValueError(f"unknown preprocessing mode {mode!r}; there are tf, caffe, torch")


def _row(values: Sequence[float]) -> np.ndarray:
    return np.array(values, dtype=np.float32)
