"""The images of a run and how they are split into training, validation and test."""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

from flowers_torch.config import Config, split_fractions
from flowers_torch.config_file import load_config
from flowers_torch.data.dataset import ImageDataset
from flowers_torch.data.quality.ahead import wait_for_inspection
from flowers_torch.data.quality.filter import FilteredDataset, filter_images
from flowers_torch.data.sources.flowers17 import by_file_name, is_from_flowers17, official_split, whole_set
from flowers_torch.data.sources.layouts import PLAIN
from flowers_torch.data.sources.open import open_dataset
from flowers_torch.data.splits.assign import Splits, exact_split, split_dataset
from flowers_torch.data.spread import Spread, alone
from flowers_torch.errors import DataError, UsageError, printable
from flowers_torch.log import log

TUTORIAL_COUNTS = (800, 280, 280)  # of Flowers-17 in the original tutorial, with the 40 images it left over


def open_images(config: Config, folder: Path | None = None, spread: Spread = alone) -> FilteredDataset:
    """The images of a configuration that can be trained on; `folder` is the run that had them before."""
    wait_for_inspection()
    with images_of(folder, config) if folder else contextlib.nullcontext():
        dataset = open_dataset(config.data, classes=config.classes, groups=config.groups, test=config.test)
        filtered = filter_images(dataset, config.exclude, config.groups, config.skip_bad, config.mirror, spread)
    if len(filtered.dataset.classes) < 2:
        raise DataError(f"--exclude {printable(config.exclude)} leaves too few classes", "leave out fewer of them")
    return filtered


def on_this_machine(filtered: FilteredDataset, config: Config) -> FilteredDataset:
    """Images as another process found them, where they are here; another machine may unpack them somewhere else."""
    if filtered.dataset.root.is_dir():
        return filtered
    here = open_dataset(config.data, classes=config.classes, groups=config.groups, test=config.test)
    return dataclasses.replace(filtered, dataset=dataclasses.replace(filtered.dataset, root=here.root))


@contextlib.contextmanager
def images_of(folder: Path, config: Config) -> Iterator[None]:
    """Says in a `DataError` that the images of a run have moved, if they have."""
    try:
        yield
    except DataError as error:
        place = Path(config.data)
        there = place.parent if set("*{") & set(place.name) else place  # a pattern of tar shards
        if not place.is_absolute() or there.exists():
            raise
        what = f"the photos of {printable(folder)} are not at {printable(place)}"
        raise DataError(what, "say where they are now with --data") from error


def open_other(run: Path, data: str, classes: str = "") -> ImageDataset:
    """Other labeled images; folders are read as those of the run are, unless `classes` says what names them."""
    if not classes and (run / "config.toml").is_file():
        classes = load_config(file=str(run / "config.toml")).classes
    return open_dataset(data, classes=classes)


def log_reading(dataset: ImageDataset) -> None:
    """Logs how the source was read, where that is not plain, and what in it is not used."""
    if dataset.layout not in ("", PLAIN):
        log.info(f"read     {dataset.layout}")
    for note in dataset.notes:
        log.info(f"note     {note}")
    for thing in dataset.unused:
        log.info(f"not used {thing}")


def choose_splits(dataset: ImageDataset, config: Config, duplicates: Sequence[Sequence[int]] = ()) -> Splits:
    """Fractions of any data set, exact ones of Flowers-17, and by name the official splits of Flowers-17.

    Raises:
        UsageError: a named split for another data set.
    """
    fractions = split_fractions(config.split)
    if not is_from_flowers17(dataset):
        if fractions is None:
            raise UsageError(f"--split {config.split} is for flowers17 only", "give fractions such as 60/20/20")
        return split_dataset(dataset, fractions, config.seed, duplicates)
    if config.split.startswith("oxford"):
        return official_split(dataset, int(config.split[-1]))
    # The whole set is split, then the excluded images are dropped, so that no other image moves.
    whole = dataclasses.replace(whole_set(dataset.root), groups=dataset.groups)
    counts: Sequence[int] = TUTORIAL_COUNTS
    if fractions is not None:
        val, test = (round(fraction * len(whole)) for fraction in fractions[1:])
        counts = (len(whole) - val - test, val, test)
    place = {path: number for number, path in enumerate(whole.paths)}
    groups = [[place[dataset.paths[index]] for index in group] for group in duplicates]
    return by_file_name(exact_split(whole, counts, config.seed, groups), dataset)
