"""Thumbnails of a dataset's images and their comparison in small windows, to tell copies from look-alikes."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from flowers_torch.data.dataset import ImageDataset
from flowers_torch.data.images import load_image
from flowers_torch.data.value_range import Range

SIDE, COLOR_SIDE, COARSE_SIDE = 96, 8, 16
STEP = 3  # between windows of 6 x 6 pixels
SHARP = 1.3  # pixels of the smaller image for each pixel compared
# By benchmarks/duplicates.py, photos of 200 pixels saved with quality 25 have up to 0.13, look-alikes from 0.29 on.
MAX_RESIDUAL = 0.25  # of the energy in a window
FLAT = 0.2  # contrast, as a fraction of the image's, below which a window counts as flat
MAX_COLOR = 0.15  # difference in color, as a fraction of the image's contrast
LEAST_CONTRAST = 20.0  # for colors; in a dull image, compression changes them by more than a fraction
GRAY = 2.0  # largest color of a gray image, 0..128


class Thumbnails:
    """Thumbnails of images, about 10 kB each, decoded when `prepare` first names them."""

    def __init__(self, dataset: ImageDataset, indices: list[int], sides: list[int]) -> None:
        """Takes the indices in the dataset and the shorter sides of the images; all else counts positions in these."""
        self.dataset, self.indices, self.sides = dataset, indices, sides
        self.ranges: list[Range] = [()] * len(indices)  # of images with more than 8 bits
        self.row = np.full(len(indices), -1, dtype=np.int32)  # in the arrays below; -1: not decoded
        self.count = 0  # of rows in use
        self.luma = np.zeros((64, SIDE, SIDE), dtype=np.uint8)
        self.color = np.zeros((64, 2, COLOR_SIDE, COLOR_SIDE), dtype=np.float16)
        self.contrast = np.full(64, LEAST_CONTRAST)  # standard deviation of brightness
        self.coarse = np.zeros((64, COARSE_SIDE, COARSE_SIDE), dtype=np.float32)  # of mean 0 and norm 1

    def _make_room(self, rows: int) -> None:
        """Makes the arrays longer, and keeps what is there."""

        def longer(array: np.ndarray) -> np.ndarray:
            made = np.zeros((rows, *array.shape[1:]), dtype=array.dtype)
            made[: len(array)] = array
            return made

        self.luma, self.color, self.coarse = longer(self.luma), longer(self.color), longer(self.coarse)
        self.contrast = longer(self.contrast)

    def prepare(self, positions: Sequence[int] | np.ndarray) -> None:
        """Decodes the images at these positions unless that is done."""
        wanted = np.unique(np.array(positions, dtype=np.int64))
        missing = wanted[self.row[wanted] < 0]
        if self.count + len(missing) > len(self.luma):
            self._make_room(max(2 * len(self.luma), self.count + len(missing)))
        rows = np.arange(self.count, self.count + len(missing))
        with ThreadPoolExecutor(2) as threads:
            list(threads.map(self._decode, missing.tolist(), rows.tolist()))
        self.row[missing] = rows
        self.count += len(missing)

    def _decode(self, position: int, row: int) -> None:
        path = self.dataset.root / self.dataset.paths[self.indices[position]]
        image = load_image(path, at_least=2 * SIDE, value_range=self.ranges[position]).convert("YCbCr")
        pixels = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.HAMMING))
        self.luma[row] = pixels[..., 0]
        self.contrast[row] = max(float(pixels[..., 0].std()), LEAST_CONTRAST)
        self.color[row] = [_pool(pixels[..., c] - np.float32(128), COLOR_SIDE) for c in (1, 2)]
        coarse = _pool(pixels[..., 0].astype(np.float32), COARSE_SIDE)
        coarse -= coarse.mean()
        self.coarse[row] = coarse / max(float(np.linalg.norm(coarse)), 1e-6)

    def correlate(self, rows: np.ndarray, columns: np.ndarray, mirrored: bool) -> np.ndarray:
        """Correlations (rows, columns) of images at 16 x 16, with `mirrored` also of mirror images; the higher ones."""
        own, others = self.coarse[self.row[rows]], self.coarse[self.row[columns]].reshape(-1, COARSE_SIDE**2).T
        upright = own.reshape(-1, COARSE_SIDE**2) @ others
        return np.maximum(upright, own[:, :, ::-1].reshape(-1, COARSE_SIDE**2) @ others) if mirrored else upright

    def is_mirrored(self, a: int, b: int) -> bool:
        """Whether an image looks more like the mirror image of the other than like the other."""
        one, other = self.coarse[self.row[a]], self.coarse[self.row[b]]
        return bool((one * other[:, ::-1]).sum() > (one * other).sum())

    def same(self, a: int, b: int, mirrored: bool) -> bool:
        """Whether two images show one picture: they differ little in every window, in brightness and in color."""
        alike = self.color_difference(a, b, mirrored) <= MAX_COLOR
        return alike and self.residual(a, b, mirrored) <= MAX_RESIDUAL  # guard: D27 alike

    def residual(self, a: int, b: int, mirrored: bool) -> float:
        """The largest difference in a window, over the energy of both images in it.

        Brightness and contrast of the whole images do not count. A window that shows something in only one of the
        images, or unrelated things in both, has about 1.
        """
        side = SIDE
        while side > SIDE // 4 and side * SHARP > min(self.sides[a], self.sides[b]):
            side //= 2
        one, other = (_normalized(self.luma[self.row[i]], side) for i in (a, b))
        other = other[:, ::-1] if mirrored else other
        energy = _variance(one) + _variance(other) + 2 * FLAT**2
        return float((_windows((one - other) ** 2) / energy).max())

    def color_difference(self, a: int, b: int, mirrored: bool) -> float:
        """The largest difference in color in 8 x 8 windows over the contrast; 0 if one of the images is gray."""
        one, other = (self.color[self.row[i]].astype(np.float32) for i in (a, b))
        if min(np.abs(one).max(), np.abs(other).max()) < GRAY:
            return 0.0
        other = other[:, :, ::-1] if mirrored else other
        return float(np.abs(one / self.contrast[self.row[a]] - other / self.contrast[self.row[b]]).max())


def _normalized(luma: np.ndarray, side: int) -> np.ndarray:
    """Brightness at a side, with mean 0 and standard deviation 1."""
    values = _pool(luma.astype(np.float32), side)
    values -= values.mean()
    return values / max(float(values.std()), 1e-6)


def _pool(values: np.ndarray, side: int) -> np.ndarray:
    """Means of an image (S, S) at a side that divides S."""
    factor = len(values) // side
    return values if factor == 1 else values.reshape(side, factor, side, factor).mean((1, 3))


def _windows(values: np.ndarray) -> np.ndarray:
    """Means in overlapping windows."""
    rows = values[::STEP] + values[1::STEP] + values[2::STEP]
    cells = rows[:, ::STEP] + rows[:, 1::STEP] + rows[:, 2::STEP]
    cells = cells[1:] + cells[:-1]
    return (cells[:, 1:] + cells[:, :-1]) / (2 * STEP) ** 2


def _variance(values: np.ndarray) -> np.ndarray:
    """Variance in the windows."""
    return _windows(values * values) - _windows(values) ** 2
