"""Sections that show photos: thumbnails, mistakes with Grad-CAM, confidence, map, augmentation."""

import base64
import dataclasses
import functools
import io
import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from markupsafe import Markup
from PIL import Image
from torch import Tensor, nn

from flowers_torch.data.augment.per_image import eval_transform
from flowers_torch.data.augment.preview import sample_by_class, variants
from flowers_torch.data.dataset import ImageDataset
from flowers_torch.data.images import load_image
from flowers_torch.data.preprocessing import Preprocessing
from flowers_torch.data.quality.report import Finding
from flowers_torch.data.value_range import Range
from flowers_torch.errors import DataError, printable
from flowers_torch.evaluation.gradcam import grad_cam, input_to_image, overlay
from flowers_torch.files.system import usable_cores
from flowers_torch.report.attempt import Attempt
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
EXAMPLES = 3  # groups of photos shown for a finding of the check
LABEL_ISSUES = 24  # shown
SIMILAR = 2  # training photos shown beside a mistake
SIMILAR_POOL = 96  # training photos compared with the mistakes, where their features are not known yet
SIMILAR_SIDE = 88
MAX_READERS = 4  # threads


@dataclasses.dataclass(frozen=True)
class Source:
    """What a report shows besides the run folder: its photos and its network."""

    dataset: ImageDataset
    findings: Sequence[Finding]
    model: nn.Module
    runtime: Runtime
    attempt: Attempt = dataclasses.field(default_factory=Attempt)
    features: Callable[[Sequence[int]], Tensor] | None = None  # of photos by index (N, D), to find similar ones
    similar_pool: int = SIMILAR_POOL  # training photos among which similar ones are searched

    @functools.cached_property
    def names(self) -> frozenset[str]:
        """The paths of the dataset."""
        return frozenset(self.dataset.paths)

    def file(self, name: str) -> Path:
        """A photo that a record of the run names; the folder if it is none, lest a record shows any other file."""
        return self.dataset.root / (name if name in self.names else "")  # guard: S1 report


def figure(run: RunSummary, index: int, src: str = "") -> dict[str, Any]:
    """What the page says about the test photo at an index; `src` is empty where its picture is elsewhere."""
    guess, label = run.predicted[index], int(run.labels[index])
    return {
        "index": index,
        "src": src,
        "file": printable(run.paths[index]),
        "label": printable(run.classes[label]),
        "predicted": "" if guess == label else printable(run.classes[guess]),  # empty: as its label
        "probability": percent(float(run.probabilities[index, guess])),
    }


def figures_of_test(
    run: RunSummary,
    prep: Preprocessing,
    source: Source | None,
    cells: dict[str, list[int]],
    of_classes: Sequence[int] = (),
) -> dict[str, Any]:
    """Figures of the test photos. Each picture is in the page once: in a section or in the script's list.

    `cells` and `of_classes` are the photos that the confusion matrix and the table of the classes show.
    """
    highest_loss = run.probabilities[torch.arange(len(run.labels)), run.labels].argsort().tolist()
    mistakes = [i for i in highest_loss if run.predicted[i] != int(run.labels[i])][:MISTAKES]
    by_confidence = run.probabilities.amax(1).argsort().tolist()
    least, most = by_confidence[:EXTREMES], by_confidence[::-1][:EXTREMES]
    place = {path: index for index, path in enumerate(run.paths)}
    changed = [run.update.get(name, []) for name in ("only_first", "only_second")]
    lost, won = ([place[path] for path in paths if path in place][:EXTREMES] for paths in changed)
    by_class = [(run.labels == label).nonzero()[:, 0].tolist() for label in range(len(run.classes))]
    turns = [index for turn in itertools.zip_longest(*by_class) for index in turn if index is not None]
    chosen = list(dict.fromkeys([*lost, *won, *mistakes, *least, *most, *of_classes, *turns]))[:TEST_PICTURES]
    pictures: dict[int, str] = {}
    cams: dict[int, dict[str, str]] = {}
    similar: dict[int, list[tuple[str, str, str]]] = {}
    if source:
        made = thumbnails([source.file(run.paths[index]) for index in chosen], prep.value_range)
        pictures = dict(zip(chosen, made, strict=True))
        network = source
        cams = source.attempt("Grad-CAM", lambda: grad_cams(run, mistakes[:EXPLAINED], prep, network), {})
        similar = source.attempt("similar photos", lambda: find_similar(run, mistakes, prep, network), {})

    def figures(members: Sequence[int]) -> list[dict[str, Any]]:
        return [figure(run, index, pictures.pop(index, "")) for index in members]

    shown = {
        "lost": figures(lost),
        "won": figures(won),
        "explained": [(figure(run, index), cam) for index, cam in cams.items()],
        "mistakes": figures([index for index in mistakes if index not in cams]),
        "least_confident": figures(least),
        "most_confident": figures(most),
    }
    members = range(len(run.paths)) if len(run.paths) <= TEST_PICTURES else sorted(chosen)
    listed = {index: figure(run, index, pictures.get(index, "")) for index in members}
    return shown | {
        "similar_photos": similar,
        "listed": listed,
        "cells": {key: [index for index in cell if index in listed] for key, cell in cells.items()},
    }


def other_figures(
    run: RunSummary, source: Source | None, mirror: bool = True, value_range: Range = ()
) -> dict[str, Any]:
    """Label issues, findings of the check and augmented photos, as far as there are photos."""
    issues = run.label_issues.get("label_issues", [])[:LABEL_ISSUES]
    if source is None:
        return {"findings": [], "augmented": [], "label_issues": [(issue, "") for issue in issues]}
    data, root = source.dataset, source.dataset.root
    findings = []
    for finding in source.findings:
        names = [data.paths[i] for group in finding.groups[:EXAMPLES] for i in group[:2]]
        made = thumbnails([root / name for name in names], value_range)
        findings.append((finding, list(zip(names, made, strict=True))))
    train = set(run.split["train"])
    candidates = [data.paths[i] for i in sample_by_class(data, min(len(data), 64))]
    examples = [root / path for path in candidates if path in train][:3]
    pictures = thumbnails([source.file(issue["file"]) for issue in issues], value_range)
    return {
        "findings": findings,
        "augmented": augmentation_sheet(run, examples, mirror, value_range) if run.stages else [],
        "label_issues": list(zip(issues, pictures, strict=True)),
    }


def map_dots(run: RunSummary, width: int = 720, height: int = 460, margin: int = 14) -> list[dict[str, Any]]:
    """Test photos placed by a projection of their features, mistakes last (on top); empty without one."""
    places = run.predictions.projection
    if places is None:
        return []
    low, high = places.amin(0), places.amax(0)
    unit = torch.where(high > low, (places - low) / (high - low).clamp(min=1e-12), 0.5)
    pixels = margin + unit * torch.tensor([width - 2 * margin, height - 2 * margin])
    step = -(-len(run.paths) // len(places))  # of many photos every nth has a place
    pairs = zip(range(0, len(run.paths), step), pixels.tolist(), strict=True)
    dots = [{"x": x, "y": height - y, "number": int(run.labels[i]), **figure(run, i)} for i, (x, y) in pairs]
    return sorted(dots, key=lambda dot: dot["predicted"] != "")


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


def thumbnails(paths: Sequence[Path], value_range: Range = (), side: int = SIDE) -> list[str]:
    """A thumbnail for each photo; "" if it cannot be read or the bytes are used up."""

    def picture(path: Path) -> str:
        try:
            return data_uri(load_image(path, at_least=side, value_range=value_range), side)
        except DataError:  # moved or edited since the run
            return ""

    with ThreadPoolExecutor(min(usable_cores(), MAX_READERS)) as pool:
        made = list(pool.map(picture, paths))
    used = itertools.accumulate(map(len, made), initial=0)
    return [text if before < THUMBNAIL_BYTES else "" for text, before in zip(made, used, strict=False)]


def grad_cams(
    run: RunSummary, indices: Sequence[int], prep: Preprocessing, source: Source
) -> dict[int, dict[str, str]]:
    """The input of the network and the heat maps for the predicted and the true class, by index.

    Photos that cannot be read are left out.

    Raises:
        UsageError: Grad-CAM does not support the network.
    """
    transform = eval_transform(**prep.transform_options())
    found = {}
    for index in indices:
        guess, label = run.predicted[index], int(run.labels[index])
        try:
            pixels = transform(load_image(source.file(run.paths[index]), value_range=prep.value_range))
            batch = source.runtime.images(pixels[None].repeat(2, 1, 1, 1))
            heat = grad_cam(source.model, batch, torch.tensor([guess, label]))
        except DataError:
            continue
        image = input_to_image(pixels, prep.mean, prep.std)
        found[index] = {
            "input": data_uri(image, GRAD_CAM_SIDE, 80),
            "predicted": data_uri(overlay(image, heat[0]), GRAD_CAM_SIDE, 80),
            "true": data_uri(overlay(image, heat[1]), GRAD_CAM_SIDE, 80),
            "predicted_class": run.classes[guess],
            "true_class": run.classes[label],
        }
    return found


def find_similar(
    run: RunSummary, mistakes: Sequence[int], prep: Preprocessing, source: Source
) -> dict[int, list[tuple[str, str, str]]]:
    """(file, class, picture) of the training photos whose features are most like those of each mistake, by index.

    Only photos of the true and of the predicted classes are compared.
    """
    if source.features is None or not mistakes:
        return {}
    data = source.dataset
    place = {name: index for index, name in enumerate(data.paths)}
    classes = {run.classes[label] for i in mistakes for label in (int(run.labels[i]), run.predicted[i])}
    pool = [place[name] for name in run.split["train"] if name in place]
    pool = [index for index in pool if data.classes[data.labels[index]] in classes]
    pool = pool[:: -(-len(pool) // source.similar_pool) or 1]
    wrong = [i for i in mistakes if run.paths[i] in place]
    features = source.features([*(place[run.paths[i]] for i in wrong), *pool])
    if not pool or not features.numel():
        return {}
    unit = F.normalize(features - features.mean(0), dim=1)
    best = (unit[: len(wrong)] @ unit[len(wrong) :].T).topk(min(SIMILAR, len(pool)), dim=1).indices.tolist()
    shown = sorted({pool[n] for row in best for n in row})
    made = thumbnails([data.root / data.paths[index] for index in shown], prep.value_range, SIMILAR_SIDE)
    pictures = dict(zip(shown, made, strict=True))
    rows = {i: [pool[n] for n in row if pictures[pool[n]]] for i, row in zip(wrong, best, strict=True)}
    return {i: [(data.paths[n], data.classes[data.labels[n]], pictures[n]) for n in row] for i, row in rows.items()}


def training_counts(run: RunSummary, source: Source | None) -> dict[str, int]:
    """Training photos of each class; empty without the photos."""
    if source is None:
        return {}
    data, train = source.dataset, set(run.split["train"])
    members = (label for name, label in zip(data.paths, data.labels, strict=True) if name in train)
    counts = Counter(data.classes[label] for label in members)
    return {name: counts[name] for name in run.classes}


def augmentation_sheet(
    run: RunSummary, paths: Sequence[Path], mirror: bool = True, value_range: Range = ()
) -> list[list[Markup]]:
    """Rows of thumbnails: a photo, then up to five different views of it, as the last stage sees them."""
    rows, size = [], min(run.config.get("size") or 224, 2 * SIDE)
    for path in paths:
        try:
            image = load_image(path, value_range=value_range)
        except DataError:
            continue
        views = variants(image, run.stages[-1]["augment"], size, 5, mirror=mirror)
        rows.append(list(dict.fromkeys(data_uri(picture) for picture in (image, *views))))
    return rows
