"""What the features of all images tell about the data: label issues, and a learning curve.

The features come from the network as it was before training. After training it has memorized its training
images, wrong labels included.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowers_torch.data.splits.assign import group_units
from flowers_torch.data.splits.split_file import read_split
from flowers_torch.errors import UsageError, plural, printable
from flowers_torch.evaluation.label_issues import find_label_issues
from flowers_torch.evaluation.out_of_fold import learning_curve
from flowers_torch.files.atomic import write_csv, write_json
from flowers_torch.log import log
from flowers_torch.models.checkpoint import build
from flowers_torch.models.weights import load_weights, plan_weights
from flowers_torch.report.run_summary import LABEL_ISSUES_FILE
from flowers_torch.runs.experiment import Experiment


def untrained_features(experiment: Experiment) -> Tensor:
    """Features (N, D) of all images of a run, from the network as it was before training.

    Raises:
        UsageError: the network cannot be split in front of its head, or the features exceed the memory.
    """
    config, dataset = experiment.config, experiment.dataset
    torch.manual_seed(config.seed)  # the same fresh weights as at the start of training
    model = build(experiment.info)
    plan = plan_weights(config.arch, config.weights or "imagenet", config.keras_input, config.model_options)
    loaded = load_weights(model, config.arch, plan)
    log.info(f"features of {plural(dataset, 'photo')}; {loaded}")
    return experiment.features.of_frozen(experiment.runtime.place(model), range(len(dataset)))


def features_of_runs(experiment: Experiment, folders: Sequence[Path], data: str = "") -> list[Tensor]:
    """The `untrained_features` (N, D) of a run and of each of the further runs of the same photos.

    The splits of the runs may differ. `data` is where their photos are now, if they have moved.

    Raises:
        UsageError: a run has other classes, photos or labels, or its features cannot be computed.
    """
    features, own = [untrained_features(experiment)], _identity(experiment)
    for folder in folders:
        other, _ = Experiment.open(folder, data=data)
        for kind, theirs in _identity(other).items():
            if theirs != own[kind]:
                what = f"{printable(folder)} has other {kind} than {printable(experiment.folder)}"
                raise UsageError(what, "name runs of the same --data and --exclude, or leave out that run")
        features.append(untrained_features(other))
    return features


def _identity(experiment: Experiment) -> dict[str, Any]:
    """What runs must share so that their predictions can be averaged image by image."""
    dataset = experiment.dataset
    saved = read_split(experiment.folder / "split.json")["splits"]
    digests = {path: digest for members in saved.values() for path, digest in members.items()}
    return {
        "classes": dataset.classes,
        "photos": (dataset.paths, [digests.get(path) for path in dataset.paths]),
        "labels": dataset.labels,
    }


def find_run_label_issues(experiment: Experiment, networks: Sequence[Tensor]) -> dict[str, Any]:
    """Finds the label issues of a finished run and writes `label_issues.json` into its folder.

    `networks` are the features of `features_of_runs`; the probabilities of the networks are averaged. Returns the
    content of that file, with the most confident label issue first. The probabilities of an issue are those of its
    true class, given the photo and its label.
    """
    dataset = experiment.dataset
    labels, units = torch.tensor(dataset.labels), group_units(dataset, experiment.filtered.duplicates)
    curve = learning_curve(networks, labels, len(dataset.classes), units)
    found = {
        "images": len(dataset),
        "curve": [dataclasses.asdict(point) for point in curve.points],
        "more_photos": curve.describe(dataset.classes),
        "label_issues": [
            {
                "file": dataset.paths[issue.index],
                "label": dataset.classes[issue.label],
                "looks_like": dataset.classes[issue.suggested],
                "probability": issue.suggested_probability,
                "probability_of_label": issue.label_probability,
            }
            for issue in find_label_issues(curve.probabilities, labels, units)
        ],
    }
    write_json(experiment.folder / LABEL_ISSUES_FILE, found)
    return found


def write_issue_table(path: Path, experiment: Experiment, found: dict[str, Any]) -> None:
    """Writes the label issues as a CSV file, with the absolute path of each photo."""
    columns = ["file", "label", "looks_like", "probability", "probability_of_label"]
    root = experiment.dataset.root.absolute()
    rows = [issue | {"file": (root / issue["file"]).as_posix()} for issue in found["label_issues"]]
    write_csv(path, rows, columns)
