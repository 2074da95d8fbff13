"""Capped copies of data sets, for many short runs: so many photos, no larger than a run needs, in class folders."""

import csv
import dataclasses
import json
import os
import shutil
import tarfile
from pathlib import Path

from PIL import Image

from flowers_torch.cli import main as flowers_torch
from flowers_torch.config import Config
from flowers_torch.data.sources.open import open_dataset
from flowers_torch.data.splits.assign import exact_split
from flowers_torch.runs.dataset import open_images

TRAINED = 5 / 8  # of the photos; the rest validates
TESTED = 3  # photos of a class of mean size


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a data set comes from, and what of it is used."""

    file: str
    inside: str = ""  # folder of the archive that holds the photos
    truth: str = ""  # table in the archive with the columns file and true_class
    without_copies: bool = False  # as `flowers-torch check` finds them


def capped(source: Source, folder: Path, data: Path, limit: int, side: int, seed: int) -> Path:
    """Makes a copy with train, val and test folders, unless it is there; returns its `photos.json`.

    The split is stratified and keeps duplicates together. A few photos are the test, because a run wants one.

    Args:
        folder: Of the copy.
        data: Folder that holds the file, at any depth.
        limit: Photos to train on and to validate with, at most; 0 for all.
        side: Shorter side in pixels, at most.
    """
    table = folder / "photos.json"
    if table.is_file():
        return table
    os.environ["FLOWERS_TORCH_CACHE"] = str(folder / "cache")
    path, truth = next(data.rglob(source.file)), {}
    if source.inside:
        with tarfile.open(path) as archive:
            archive.extractall(folder / "unpacked", filter="data")
        path = folder / "unpacked" / source.inside
    if source.truth:
        with (folder / "unpacked" / source.truth).open(newline="") as rows:
            truth = {Path(row["file"]).parts[-2:]: row["true_class"] for row in csv.DictReader(rows)}
    exclude = ""
    if source.without_copies:
        flowers_torch(["check", str(path), "--out", str(folder / "check")])
        exclude = str(folder / "check" / "exclude.csv")
    filtered = open_images(Config(data=str(path), exclude=exclude))
    dataset = filtered.dataset
    test = TESTED * len(dataset.classes)
    count = min(limit or len(dataset), len(dataset) - test)
    train = round(TRAINED * count)
    splits = exact_split(dataset, (train, count - train, test), seed, filtered.duplicates)
    written: dict[str, list[str]] = {}
    for split, indices in splits.items():
        for index in indices:
            name = dataset.paths[index]
            target = folder / "photos" / split / dataset.classes[dataset.labels[index]] / name.replace("/", "_")
            target.parent.mkdir(parents=True, exist_ok=True)
            reduce(dataset.root / name, target, side)
            written.setdefault(split, []).append(str(target))
    classes = open_dataset(str(folder / "photos")).classes  # in the order of a run on the copy
    content: dict[str, object] = {"classes": classes}
    for split, names in written.items():
        content[split] = [(name, classes.index(Path(name).parent.name)) for name in names]
    if truth:
        true_names = [truth[Path(dataset.paths[index]).parts[-2:]] for index in splits["val"]]
        content["truth"] = [classes.index(name) for name in true_names]
    table.write_text(json.dumps(content))
    return table


def reduce(source: Path, target: Path, side: int) -> None:
    """Copies a photo, reduced to a shorter side where it is larger."""
    with Image.open(source) as photo:
        factor = side / min(photo.size)
        if factor < 1:
            width, height = (max(side, round(factor * length)) for length in photo.size)
            photo.convert("RGB").resize((width, height), Image.Resampling.LANCZOS).save(target, "JPEG", quality=95)
        else:
            shutil.copyfile(source, target)
