"""The exclude list: images and classes that a check advises to leave out, or that the user lists."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from flowers_torch.data.dataset import CLASS_MARK, ImageDataset
from flowers_torch.data.sources.rows import counted, listed, normalized
from flowers_torch.errors import DataError, plural, printable
from flowers_torch.files.atomic import write_csv
from flowers_torch.files.reading import read_csv


def write_exclude_list(path: Path, reasons: Mapping[str, str]) -> None:
    """Writes a relative path and a reason for each image. Lines may be deleted or added by hand."""
    write_csv(path, [{"file": name, "reason": reason} for name, reason in reasons.items()], ["file", "reason"])


def read_exclude_list(path: Path) -> dict[str, str]:
    """Relative path to reason. A missing file, or one without the column `file`, is a `DataError`."""
    rows = read_csv(path, "an exclude list", ["file"], "name the exclude.csv of a check")
    return {row["file"]: row.get("reason") or "by hand" for row in rows if row["file"]}


def drop_images(dataset: ImageDataset, exclude: dict[str, str]) -> ImageDataset:
    """The dataset without the images and the classes (`class:NAME`) of an exclude list.

    A class that it does not name but leaves without any image, and one that is not there, are a `DataError`.
    """
    excluded = set(map(normalized, exclude))  # macOS encodes accents in another way
    listed_classes = [key for key in excluded if key.startswith(CLASS_MARK)]
    if absent := excluded - set(map(normalized, dataset.paths)) - set(listed_classes):
        note = f"names in the exclude list without a photo here: {listed(sorted(absent))}"
        dataset = replace(dataset, notes=(*dataset.notes, note))
    dataset = _drop_classes(dataset, listed_classes)
    rest = [i for i, path in enumerate(dataset.paths) if normalized(path) not in excluded]
    remaining = {dataset.labels[i] for i in rest}
    empty = [printable(name, 60) for label, name in enumerate(dataset.classes) if label not in remaining]
    if empty:  # guard: D33
        what = f"the exclude list leaves no photo of {', '.join(empty)}"
        raise DataError(what, f"replace those photos, or leave out the class with --exclude {CLASS_MARK}NAME")
    if len(rest) == len(dataset):
        return dataset
    return _select(dataset, rest, f"{plural(len(dataset) - len(rest), 'photo is', 'photos are')} excluded")


def _drop_classes(dataset: ImageDataset, marks: Sequence[str]) -> ImageDataset:
    names = {mark.removeprefix(CLASS_MARK) for mark in set(marks) - set(dataset.paths)}
    if unknown := sorted(names - set(dataset.classes)):
        what = f"the exclude list names class {printable(unknown[0])}, which {printable(dataset.name)} does not have"
        raise DataError(what, f"correct the name; its classes are {listed(dataset.classes, limit=50)}")
    if not names:
        return dataset
    classes = tuple(name for name in dataset.classes if name not in names)
    rest = [i for i, label in enumerate(dataset.labels) if dataset.classes[label] in classes]
    sizes = {name: count for name, count in zip(dataset.classes, dataset.counts(), strict=True) if name in names}
    remaining = _select(dataset, rest, f"classes that are left out, with all their photos: {counted(Counter(sizes))}")
    labels = tuple(classes.index(dataset.classes[label]) for label in remaining.labels)
    return replace(remaining, classes=classes, labels=labels)


def _select(dataset: ImageDataset, rest: Sequence[int], note: str) -> ImageDataset:
    paths = tuple(dataset.paths[i] for i in rest)
    return replace(
        dataset,
        paths=paths,
        labels=tuple(dataset.labels[i] for i in rest),
        split={path: dataset.split[path] for path in paths if path in dataset.split},
        groups={path: dataset.groups[path] for path in paths if path in dataset.groups},
        notes=(*dataset.notes, note),
    )
