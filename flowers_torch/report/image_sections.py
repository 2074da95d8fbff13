"""Sections that show photos: thumbnails, mistakes with Grad-CAM, confidence, map, augmentation."""

import base64
import dataclasses
import io
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from markupsafe import Markup
from PIL import Image
from torch import nn

from flowers_torch.data.augment.per_image import eval_transform
from flowers_torch.data.augment.preview import variants
from flowers_torch.data.images import load_image
from flowers_torch.data.preprocessing import Preprocessing
from flowers_torch.errors import DataError, UsageError, printable
from flowers_torch.evaluation.gradcam import grad_cam, input_to_image, overlay
from flowers_torch.report.run_summary import RunSummary
from flowers_torch.report.templating import percent
from flowers_torch.training.device import Runtime

SIDE = 128  # of a thumbnail, pixels
GRAD_CAM_SIDE = 176  # of a picture with its heat map
THUMBNAIL_BYTES = 2_600_000  # of all thumbnails of a section together
MISTAKES = 24  # shown, highest loss first
EXPLAINED = 6  # of them with Grad-CAM
EXTREMES = 8  # photos shown as most and as least confident
TEST_PICTURES = 320  # thumbnails of test photos


@dataclasses.dataclass(frozen=True)
class Figure:
    """A test photo with its caption; `src` is empty where its picture is elsewhere in the page or missing."""

    index: int
    src: str
    file: str
    caption: str
    wrong: bool


def figure(run: RunSummary, index: int, src: str = "") -> Figure:
    """What the page says about the test photo at an index; texts are printable."""
    guess, label = run.predicted[index], int(run.labels[index])
    predicted = "" if guess == label else f", predicted as {run.classes[guess]}"
    caption = f"{run.classes[label]}{predicted} ({percent(float(run.probabilities[index, guess]))})"
    return Figure(index, src, printable(run.paths[index]), printable(caption), guess != label)


def mistakes(run: RunSummary) -> list[int]:
    """Misclassified test photos, highest loss first."""
    true = run.probabilities[torch.arange(len(run.labels)), run.labels]
    order = true.argsort().tolist()
    return [i for i in order if run.predicted[i] != int(run.labels[i])][:MISTAKES]


def extremes(run: RunSummary) -> tuple[list[int], list[int]]:
    """The test photos with the least and with the most confident predictions."""
    order = run.probabilities.amax(1).argsort().tolist()
    return order[:EXTREMES], order[::-1][:EXTREMES]


def choose_pictured(run: RunSummary) -> list[int]:
    """Test photos that get a thumbnail: mistakes, extremes, then every class in turn."""
    least, most = extremes(run)
    by_class = [(run.labels == label).nonzero()[:, 0].tolist() for label in range(len(run.classes))]
    turns = [index for turn in itertools.zip_longest(*by_class) for index in turn if index is not None]
    return list(dict.fromkeys([*mistakes(run), *least, *most, *turns]))[:TEST_PICTURES]


def map_dots(run: RunSummary, width: int = 720, height: int = 460, margin: int = 14) -> list[dict[str, Any]]:
    """Test photos placed by a projection of their features, mistakes last (on top); empty without one."""
    places = run.predictions.projection
    if places is None:
        return []
    low, high = places.amin(0), places.amax(0)
    unit = torch.where(high > low, (places - low) / (high - low).clamp(min=1e-12), 0.5)
    pixels = margin + unit * torch.tensor([width - 2 * margin, height - 2 * margin])
    step = -(-len(run.paths) // len(places))  # of many photos every nth has a place
    figures = [figure(run, index) for index in range(0, len(run.paths), step)]
    dots = [
        {"x": x, "y": height - y, "figure": f, "label": int(run.labels[f.index])}
        for f, (x, y) in zip(figures, pixels.tolist(), strict=True)
    ]
    return sorted(dots, key=lambda dot: dot["figure"].wrong)


def hues(classes: int) -> list[int]:
    """A hue for each class; with many classes, neighbors in the list are far apart."""
    step = 360 * 0.381966 if classes > 8 else 360 / classes
    return [round(i * step % 360) for i in range(classes)]


def data_uri(image: Image.Image, side: int = SIDE, quality: int = 72) -> Markup:
    """A picture fitted into a square, as a JPEG inside the page."""
    small = image.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=2.0)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=quality, optimize=True)
    return Markup("data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode())


def thumbnails(paths: Sequence[Path]) -> list[str]:
    """A thumbnail for each photo; "" if it cannot be read or the bytes are used up."""
    made: list[str] = []
    total = 0
    for path in paths:
        try:
            made.append(data_uri(load_image(path, at_least=SIDE)) if total < THUMBNAIL_BYTES else "")
        except DataError:  # moved or edited since the run
            made.append("")
        total += len(made[-1])
    return made


def grad_cams(
    run: RunSummary,
    indices: Sequence[int],
    root: Path,
    model: nn.Module,
    prep: Preprocessing,
    runtime: Runtime,
) -> dict[int, dict[str, str]]:
    """The input of the network and the heat maps for the predicted and the true class, by index.

    Photos that cannot be read are left out, and all of them for a network that Grad-CAM does not support.
    """
    transform = eval_transform(**dataclasses.asdict(prep))
    found = {}
    for index in indices:
        guess, label = run.predicted[index], int(run.labels[index])
        try:
            pixels = transform(load_image(root / run.paths[index]))
            batch = runtime.images(pixels[None].repeat(2, 1, 1, 1))
            heat = grad_cam(model, batch, torch.tensor([guess, label]))
        except DataError:
            continue
        except UsageError:
            return {}
        image = input_to_image(pixels, prep.mean, prep.std)
        found[index] = {
            "input": data_uri(image, GRAD_CAM_SIDE, 80),
            "predicted": data_uri(overlay(image, heat[0]), GRAD_CAM_SIDE, 80),
            "true": data_uri(overlay(image, heat[1]), GRAD_CAM_SIDE, 80),
            "predicted_class": run.classes[guess],
            "true_class": run.classes[label],
        }
    return found


def augmentation_sheet(paths: Sequence[Path], augmentation: str, size: int, columns: int = 5) -> list[list[Markup]]:
    """Rows of thumbnails: a photo, then augmented views of it."""
    rows = []
    for path in paths:
        try:
            image = load_image(path)
        except DataError:
            continue
        made = variants(image, augmentation, min(size, 2 * SIDE), columns)
        rows.append([data_uri(picture) for picture in (image, *made)])
    return rows
