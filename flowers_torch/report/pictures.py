"""The pictures of a report: thumbnails, maps of influence, and what augmentation makes of photos."""

import base64
import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import nn

from flowers_torch.data.augment import eval_transform
from flowers_torch.data.images import load_image
from flowers_torch.data.preview import variants
from flowers_torch.errors import DataError, UsageError
from flowers_torch.evaluation.gradcam import grad_cam, overlay, seen_picture
from flowers_torch.models.zoo import Preprocessing
from flowers_torch.training.runtime import Runtime

SIDE = 128  # of a thumbnail, pixels
SEEN_SIDE = 176  # of a picture with its map of influence
BYTES = 2_600_000  # of all thumbnails together; base64 adds a third


def data_uri(image: Image.Image, side: int, quality: int = 72) -> str:
    """A picture fitted into a square, as a JPEG that stands in the page itself."""
    small = image.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=2.0)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=quality, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def thumbnails(paths: Sequence[Path]) -> list[str]:
    """A thumbnail for each photo; "" for one that cannot be read, and for all once the bytes are used up."""
    made: list[str] = []
    total = 0
    for path in paths:
        uri = ""
        if total < BYTES:
            try:
                uri = data_uri(load_image(path, at_least=SIDE), SIDE)
            except DataError:  # moved or edited since the run
                uri = ""
        total += len(uri)
        made.append(uri)
    return made


@dataclasses.dataclass(frozen=True)
class Seen:
    """What the network saw of a photo, and where it looked: for the class it named, and for the true one."""

    plain: str
    for_predicted: str
    for_true: str


def seen_by(
    model: nn.Module,
    preprocessing: Preprocessing,
    runtime: Runtime,
    paths: Sequence[Path],
    predicted: Sequence[int],
    true: Sequence[int],
) -> list[Seen | None]:
    """Maps of influence of a few photos; None for one that cannot be read, nothing for a network without."""
    transform = eval_transform(**dataclasses.asdict(preprocessing))
    found: list[Seen | None] = []
    for path, guess, truth in zip(paths, predicted, true, strict=True):
        try:
            pixels = transform(load_image(path))
            batch = runtime.images(pixels[None].repeat(2, 1, 1, 1))
            heat = grad_cam(model, batch, torch.tensor([guess, truth]))
        except DataError:
            found.append(None)
            continue
        except UsageError:
            return []
        picture = seen_picture(pixels, preprocessing.mean, preprocessing.std)
        found.append(
            Seen(*(data_uri(i, SEEN_SIDE, 80) for i in (picture, *(overlay(picture, h) for h in heat))))
        )
    return found


def augmentation_sheet(paths: Sequence[Path], policy: str, size: int, columns: int = 5) -> list[list[str]]:
    """Rows of thumbnails: a photo, then variants of it as training sees them."""
    rows = []
    for path in paths:
        try:
            photo = load_image(path)
        except DataError:
            continue
        made = variants(photo, policy, min(size, 2 * SIDE), columns)
        rows.append([data_uri(picture, SIDE) for picture in (photo, *made)])
    return rows
