"""Whether an exported model computes what the network does, tried on photos before the file gets its name."""

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
PHOTOS = sum(BATCHES)
TOLERANCE = 1e-4  # of the logits, as a share of the largest of them: other kernels, other order of sums
PHOTO_TOLERANCE = (
    0.01  # of the same, where the graph resizes the photos: by one grey level otherwise than Pillow
)

Exported = Callable[[NDArray[Any]], dict[str, NDArray[np.float32]]]


@dataclasses.dataclass(frozen=True)
class Parity:
    """How far an exported model is from the network.

    Attributes:
        logits: Largest difference.
        probabilities: Largest difference.
        largest: The largest logit, either sign.
        photos: Photos tried.
        tolerance: Of `logits`, as a share of `largest`.
    """

    logits: float
    probabilities: float
    largest: float
    photos: int
    tolerance: float

    @property
    def holds(self) -> bool:
        """Whether the difference is within the tolerance; NaN is not."""
        return self.logits <= self.tolerance * self.largest  # guard: E02 worst

    def describe(self) -> str:
        """One line."""
        return (
            f"{self.photos} photos in batches of {', '.join(map(str, BATCHES))}: logits up to "
            f"{self.largest:.3g} differ by at most {self.logits:.2g}, "
            f"probabilities by {self.probabilities:.2g}"
        )


def compare(answers: ExportableClassifier, exported: Exported, photos: Sequence[Image.Image]) -> Parity:
    """Compares with the network behind the one evaluation transform, in batches of 1, 2 and 17.

    A model that prepares photos itself takes photos of one size in a batch, so those of a batch are cut to
    their common part.

    Args:
        answers: Eager.
        exported: Batch to outputs by name.
        photos: `PHOTOS` upright RGB photos.
    """
    transform = eval_transform(**dataclasses.asdict(answers.preprocessing))
    found, expected = [], []
    rest = list(photos)
    for count in BATCHES:
        batch, rest = rest[:count], rest[count:]
        if answers.photos:
            width, height = (min(photo.size[side] for photo in batch) for side in (0, 1))
            batch = [photo.crop((0, 0, width, height)) for photo in batch]
        inputs = torch.stack([transform(photo) for photo in batch])
        with torch.inference_mode():
            answer = answers.network(inputs)
        expected.append((answer, (answer / answers.temperature).softmax(1)))
        given = np.stack([np.asarray(photo) for photo in batch]) if answers.photos else inputs.numpy()
        outputs = exported(given)
        found.append(tuple(torch.from_numpy(outputs[name]) for name in ("logits", "probabilities")))
    logits, probabilities = (
        float(torch.cat([(a[i] - b[i]).abs().flatten() for a, b in zip(found, expected, strict=True)]).max())
        for i in (0, 1)
    )
    largest = max(float(value.abs().max()) for value, _ in expected)
    tolerance = PHOTO_TOLERANCE if answers.photos else TOLERANCE
    return Parity(logits, probabilities, largest, sum(BATCHES), tolerance)


def require(parity: Parity, path: object) -> None:
    """Refuses an export that answers otherwise than the network.

    Raises:
        ExportError: the difference is above the tolerance.
    """
    if not parity.holds:
        allowed = parity.tolerance * parity.largest
        raise ExportError(
            f"{printable(path)} was not written, it would not compute what the network does: "
            f"{parity.describe()}, allowed {allowed:.2g}",
            "report it with the network's name and the versions of `flowers-torch doctor`",
        )
