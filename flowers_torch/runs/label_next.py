"""Which unlabeled photos are worth labeling next, for a run: found with its trained network and cached features."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flowers_torch.data.dataset import ImageDataset
from flowers_torch.data.quality.scan import inspect_images
from flowers_torch.data.splits.split_file import fingerprint
from flowers_torch.errors import ResourceError, UsageError, plural, printable
from flowers_torch.evaluation.label_next import choose_next
from flowers_torch.files.atomic import refuse_link, write_csv
from flowers_torch.files.system import common_folder, link_or_copy
from flowers_torch.log import log
from flowers_torch.runs.experiment import Experiment
from flowers_torch.runs.feature_cache import FeatureCache
from flowers_torch.runs.loaders import Loaders

MAX_NAME_BYTES = 240  # of a link, without its number
GUESSES = 3  # classes shown with a photo, the most probable first


@dataclasses.dataclass(frozen=True)
class NextImage:
    """A photo to label next."""

    file: Path  # absolute
    classes: tuple[str, ...]  # the most probable ones, at most `GUESSES`
    probabilities: tuple[float, ...]
    uncertainty: float  # one minus the margin between the first two
    distance: float  # cosine distance to the nearest photo that is known or chosen before, 0 .. 2

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        classes = [{"class": c, "probability": p} for c, p in zip(self.classes, self.probabilities, strict=True)]
        return {"file": str(self.file), "classes": classes, "uncertainty": self.uncertainty, "distance": self.distance}


@dataclasses.dataclass(frozen=True)
class NextImages:
    """The choice among unlabeled photos."""

    images: list[NextImage]  # the most useful first
    candidates: int  # readable photos that the run does not know
    known: int  # photos of the run among the files
    unreadable: list[str]  # errors


def find_next(experiment: Experiment, model: nn.Module, files: Sequence[Path], count: int) -> NextImages:
    """Chooses the `count` files that are worth labeling most; fewer if the rest are copies of known or chosen ones.

    Args:
        experiment: A finished run, from `Experiment.open`.
        model: Its network.
        files: Unlabeled photos. Unreadable ones, and those of the run, are left out.
        count: Photos to choose.

    Raises:
        UsageError: no usable photo, or a network that cannot be split in front of its head.
    """
    known = {fingerprint(experiment.dataset.root / path) for path in experiment.dataset.paths}
    unlabeled, unreadable = _readable(experiment, files)
    marks = [fingerprint(unlabeled.root / path) for path in unlabeled.paths]
    new = [index for index, mark in enumerate(marks) if mark not in known]
    if not new:
        what = f"none of {plural(files, 'photo')} is both readable and unknown to the run"
        raise UsageError(what, "name a folder with new photos")
    log.info(f"features of {plural(experiment.dataset, 'photo')} of the run and {plural(new, 'unlabeled one')}")
    of_known = experiment.features.of_frozen(model, range(len(experiment.dataset)))
    loaders = Loaders(experiment.config, unlabeled, experiment.info, experiment.runtime, experiment.distributed)
    cache = FeatureCache(loaders, experiment.info, experiment.acceleration, experiment.config.cache_bytes)
    features = cache.of_frozen(model, new)
    probabilities = _probabilities(experiment, model, features)
    guesses = probabilities.topk(min(GUESSES, probabilities.shape[1]), dim=1)
    images = [
        NextImage(
            unlabeled.root / unlabeled.paths[new[choice.index]],
            tuple(experiment.info.classes[label] for label in guesses.indices[choice.index].tolist()),
            tuple(guesses.values[choice.index].tolist()),
            choice.uncertainty,
            choice.distance,
        )
        for choice in choose_next(of_known, features, probabilities, count)
    ]
    return NextImages(images, len(new), len(marks) - len(new), unreadable)


def _readable(experiment: Experiment, files: Sequence[Path]) -> tuple[ImageDataset, list[str]]:
    """The readable files as a dataset, whose labels mean nothing, and the errors of the others."""
    places = dict.fromkeys(os.path.abspath(file) for file in files)
    root = common_folder([os.path.dirname(place) for place in places])
    every = tuple(Path(place).relative_to(root).as_posix() for place in places)
    dataset = ImageDataset("unlabeled photos", root, experiment.info.classes, every, (0,) * len(every))
    inspections = inspect_images(dataset)
    errors = [inspection.error for inspection in inspections if inspection.error]
    paths = tuple(path for path, inspection in zip(every, inspections, strict=True) if not inspection.error)
    return dataclasses.replace(dataset, paths=paths, labels=(0,) * len(paths)), errors


def _probabilities(experiment: Experiment, model: nn.Module, features: Tensor) -> Tensor:
    """Calibrated probabilities (N, classes) from features in front of the head."""
    split = experiment.features.split(model)
    assert split is not None  # noqa: S101 - its features are there
    head = split.head.eval()
    device = next(head.parameters()).device
    with torch.no_grad():
        logits = torch.cat([head(chunk.to(device)).float().cpu() for chunk in features.split(1024)])
    return (logits / experiment.info.temperature).softmax(1)


def write_table(path: Path, found: NextImages) -> None:
    """Writes a CSV file with an empty column `label`; with the labels filled in, `update` takes it.

    Raises:
        UsageError: the file exists; somebody may have written labels into it.
    """
    if path.exists():
        raise UsageError(f"{printable(path)} exists already", "name a new file")
    columns = ["file", "label", "looks_like", "probability", "uncertainty", "distance"]
    rows = [
        {"file": image.file.as_posix(), "label": "", "looks_like": image.classes[0]}
        | {"probability": f"{image.probabilities[0]:.4f}", "uncertainty": f"{image.uncertainty:.4f}"}
        | {"distance": f"{image.distance:.4f}"}
        for image in found.images
    ]
    write_csv(path, rows, columns)


def link_images(folder: Path, found: NextImages) -> None:
    """Links the photos into an empty folder, to be sorted into folders of their classes.

    The number in front of each name is its place in the choice. Long names lose their beginning.

    Raises:
        UsageError: the folder holds something.
        ResourceError: it cannot be written.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise UsageError(f"{printable(folder)} is not empty", "name a new folder")
    width = len(str(len(found.images)))
    try:
        refuse_link(folder).mkdir(parents=True, exist_ok=True)
        for number, image in enumerate(found.images, 1):
            name = image.file.name
            while len(os.fsencode(name)) > MAX_NAME_BYTES:
                name = name[1:]
            link_or_copy(image.file, folder / f"{number:0{width}d}-{name}", may_move=True)
    except OSError as error:
        what = f"cannot link the photos into {printable(folder)}: {error.strerror}"
        raise ResourceError(what, "choose another folder") from error
