"""Parity check: an exported model must compute what the network does."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from flowers_torch.data.augment.per_image import eval_transform
from flowers_torch.deploy.graph import ExportableClassifier
from flowers_torch.errors import ExportError, printable

BATCHES = (1, 2, 17)
PARITY_IMAGES = sum(BATCHES)
# Largest allowed difference of the logits, relative to the largest logit.
TOLERANCE = 1e-4  # other kernels, other order of summation
PREPROCESSING_TOLERANCE = 0.01  # resizing in the graph differs from Pillow's by a gray level

Exported = Callable[[NDArray[Any]], dict[str, NDArray[np.float32]]]


@dataclasses.dataclass(frozen=True)
class Parity:
    """Largest differences between an exported model and the network."""

    logits: float
    probabilities: float
    largest: float  # largest absolute logit
    images: int
    tolerance: float  # allowed difference of the logits, relative to `largest`

    @property
    def holds(self) -> bool:
        """Whether the difference is within the tolerance; False for NaN."""
        return self.logits <= self.tolerance * self.largest  # guard: E02 worst

    def describe(self) -> str:
        """One line."""
        return (
            f"{self.images} photos in batches of {', '.join(map(str, BATCHES))}: logits up to "
            f"{self.largest:.3g} differ by at most {self.logits:.2g}, "
            f"probabilities by {self.probabilities:.2g}"
        )


def compare(model: ExportableClassifier, exported: Exported, images: Sequence[Image.Image]) -> Parity:
    """Compares an exported model with the network behind the evaluation transform.

    A model with preprocessing takes images of equal size, so the images of its batches are cropped.
    `images` are `PARITY_IMAGES` upright RGB images.
    """
    transform = eval_transform(**dataclasses.asdict(model.preprocessing))
    differences, largest = [], 0.0
    rest = list(images)
    for count in BATCHES:
        batch, rest = rest[:count], rest[count:]
        if model.with_preprocessing:
            width, height = (min(image.size[side] for image in batch) for side in (0, 1))
            batch = [image.crop((0, 0, width, height)) for image in batch]
        inputs = torch.stack([transform(image) for image in batch])
        with torch.inference_mode():
            logits = model.network(inputs)
        probabilities = (logits / model.temperature).softmax(1)
        outputs = exported(
            np.stack([np.asarray(image) for image in batch]) if model.with_preprocessing else inputs.numpy()
        )
        found = (torch.from_numpy(outputs[name]) for name in ("logits", "probabilities"))
        differences.append([(a - b).abs().max() for a, b in zip(found, (logits, probabilities), strict=True)])
        largest = max(largest, float(logits.abs().max()))
    worst, worst_probability = torch.tensor(differences).amax(0).tolist()  # NaN if any is
    tolerance = PREPROCESSING_TOLERANCE if model.with_preprocessing else TOLERANCE
    return Parity(worst, worst_probability, largest, PARITY_IMAGES, tolerance)


def require_parity(parity: Parity, path: object) -> None:
    """Refuses an export that differs from the network.

    Raises:
        ExportError: the difference exceeds the tolerance.
    """
    if not parity.holds:
        allowed = parity.tolerance * parity.largest
        raise ExportError(
            f"{printable(path)} was not written because it would not compute what the network does: "
            f"{parity.describe()}, allowed {allowed:.2g}",
            "report it with the network's name and the versions of `flowers-torch doctor`",
        )
