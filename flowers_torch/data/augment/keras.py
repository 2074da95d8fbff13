"""Keras's `ImageDataGenerator` (`keras/src/legacy/preprocessing/image.py`), equal to Keras within a gray level.

An image is a float array (height, width, channels) in Keras's value range, 0..255 before `rescale`.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageEnhance

from flowers_torch.data.augment.per_batch import affine

IMAGENET_MEAN = np.array((0.485, 0.456, 0.406), dtype=np.float32)
IMAGENET_STD = np.array((0.229, 0.224, 0.225), dtype=np.float32)
CAFFE_MEAN_BGR = np.array((103.939, 116.779, 123.68), dtype=np.float32)


@dataclass(frozen=True)
class Affine:
    """Rotation, shift, shear and zoom, multiplied in this order."""

    theta: float = 0.0  # degrees
    tx: float = 0.0  # pixels along the columns; positive moves the content to the left
    ty: float = 0.0  # pixels along the rows; positive moves the content up
    shear: float = 0.0  # degrees
    zx: float = 1.0  # along the columns; above 1 shows more than the image
    zy: float = 1.0

    def matrix(self, height: int, width: int) -> np.ndarray:
        """(2, 3): the source (row, column) of an output pixel (row, column, 1)."""
        theta, shear = math.radians(self.theta), math.radians(self.shear)
        rotation = [[math.cos(theta), -math.sin(theta), 0], [math.sin(theta), math.cos(theta), 0], [0, 0, 1]]
        shift = [[1, 0, self.tx], [0, 1, self.ty], [0, 0, 1]]
        shearing = [[1, -math.sin(shear), 0], [0, math.cos(shear), 0], [0, 0, 1]]
        zoom = [[self.zx, 0, 0], [0, self.zy, 0], [0, 0, 1]]
        # Subtly wrong, as in Keras: half the height is used for x and half the width for y, so an image that
        # is not square rotates around another point than its center.
        around = np.array([[1, 0, height / 2 - 0.5], [0, 1, width / 2 - 0.5], [0, 0, 1]])
        xy = around @ rotation @ shift @ shearing @ zoom @ np.linalg.inv(around)
        return xy[[1, 0]][:, [1, 0, 2]]  # from (x, y) to (row, column)

    def apply(self, image: np.ndarray, fill_mode: str = "nearest", cval: float = 0.0) -> np.ndarray:
        """Transforms an image (H, W, C); see `per_batch.affine` for `fill_mode` and `cval`."""
        images = torch.from_numpy(np.ascontiguousarray(image, dtype=np.float32)).permute(2, 0, 1)[None]
        matrices = torch.from_numpy(self.matrix(*image.shape[:2])).float()[None]
        return affine(images, matrices, fill_mode, cval)[0].permute(1, 2, 0).numpy()


def shift_channels(image: np.ndarray, intensity: float) -> np.ndarray:
    """Adds a value to all channels, clipped to the image's own range."""
    return (image + np.float32(intensity)).clip(image.min(), image.max())


def change_brightness(image: np.ndarray, factor: float) -> np.ndarray:
    """Multiplies the brightness. As in Keras, the image is first stretched to the full range 0..255."""
    stretched = image - image.min()
    stretched = stretched / max(float(stretched.max()), 1e-12) * 255
    enhancer = ImageEnhance.Brightness(Image.fromarray(stretched.astype(np.uint8)))
    return np.asarray(enhancer.enhance(factor), dtype=np.float32)


@dataclass(frozen=True)
class KerasAugment:
    """The random transformations of `ImageDataGenerator`, by its parameters."""

    rotation_range: float = 0.0  # degrees to either side, as for shear
    width_shift_range: float = 0.0  # a fraction of the width below 1, else pixels, to either side
    height_shift_range: float = 0.0
    shear_range: float = 0.0
    zoom_range: float | tuple[float, float] = 0.0  # z for 1 - z .. 1 + z, drawn for each axis; or a range
    channel_shift_range: float = 0.0  # gray levels to either side
    brightness_range: tuple[float, float] | None = None  # of the factor
    horizontal_flip: bool = False
    vertical_flip: bool = False
    fill_mode: str = "nearest"  # as for `per_batch.affine`
    cval: float = 0.0

    def draw_affine(self, generator: np.random.Generator, height: int, width: int) -> Affine:
        """A random `Affine` within the ranges."""

        def either_side(limit: float) -> float:
            return float(generator.uniform(-limit, limit))

        # Unlike Keras, which draws tx from the height's range, the width's range shifts sideways.
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
        """A random variant of an image (H, W, C) in 0..255, as float32 of the same shape."""
        image = self.draw_affine(generator, *image.shape[:2]).apply(image, self.fill_mode, self.cval)
        if limit := self.channel_shift_range:
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
    """`fit` and `standardize` of `ImageDataGenerator`: centering, scaling and ZCA whitening.

    Unlike Keras's, `fit` applies `rescale`, so that the statistics are those of the rescaled images.
    """

    rescale: float = 1.0
    samplewise_center: bool = False  # by the image's own statistics
    samplewise_std: bool = False
    featurewise_center: bool = False  # by the statistics of each channel in the dataset
    featurewise_std: bool = False
    zca_epsilon: float | None = None  # None for no whitening
    mean: np.ndarray | None = None
    std: np.ndarray | None = None
    whitening: np.ndarray | None = None

    def fit(self, images: np.ndarray) -> "Standardizer":
        """Computes the statistics of a dataset (N, H, W, C); returns itself."""
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
        wanted = self.featurewise_center or self.featurewise_std or self.zca_epsilon is not None
        if wanted and self.mean is self.std is self.whitening is None:
            raise ValueError("the standardizer has no statistics: call fit on a set of images first")
        if self.mean is not None:
            image = image - self.mean
        if self.std is not None:
            image = image / (self.std + 1e-6)
        if self.whitening is not None:
            image = (image.reshape(-1) @ self.whitening).reshape(image.shape)
        return image


def preprocess_input(image: np.ndarray, mode: str) -> np.ndarray:
    """Scales RGB values 0..255 (..., 3) as `keras.applications` does.

    Mode `tf` scales to -1..1; `torch` scales to 0..1 and normalizes by ImageNet's mean and deviation; `caffe`
    gives BGR minus ImageNet's mean, not scaled.
    """
    image = image.astype(np.float32)
    if mode == "tf":
        return image / 127.5 - 1
    if mode == "torch":
        return (image / 255 - IMAGENET_MEAN) / IMAGENET_STD
    if mode == "caffe":
        return image[..., ::-1] - CAFFE_MEAN_BGR
    raise ValueError(f"{mode!r} is not a valid preprocessing mode: expected tf, caffe, torch")
