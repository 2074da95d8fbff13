"""Evaluation of a trained model on labeled images: those of its run, or others."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from flowers_torch.data.dataset import ImageDataset
from flowers_torch.data.splits.assign import SPLITS
from flowers_torch.data.splits.split_file import fingerprint, read_split
from flowers_torch.deploy.predictor import Predictor
from flowers_torch.errors import DataError, ModelFileError, UsageError, plural, printable
from flowers_torch.evaluation.comparison import describe_choice, loss_change
from flowers_torch.evaluation.evaluate import MIRRORED_VIEWS, VIEWS, predict_images
from flowers_torch.evaluation.metrics import Scores, fit_temperature, prediction_rows, score
from flowers_torch.evaluation.predictions import Predictions
from flowers_torch.files.reading import read_json, reading
from flowers_torch.files.tensors import safe_load
from flowers_torch.models.checkpoint import ModelInfo
from flowers_torch.models.heads import shared_copy
from flowers_torch.report.run_summary import read_history
from flowers_torch.runs.experiment import Experiment
from flowers_torch.runs.mirroring import choose_mirror, mirrors_in_training
from flowers_torch.runs.results import write_results
from flowers_torch.training.checkpoint import MODEL_FILE, RunState, check_row
from flowers_torch.training.device import Runtime


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A model on labeled images."""

    classes: tuple[str, ...]
    scores: Scores  # with the chosen views
    views: str  # key of `VIEWS`
    rows: list[dict[str, Any]]  # one for each image, as in predictions.csv
    one_view: Scores | None  # the scores without test-time augmentation, if there was any
    validation: dict[str, Scores]  # by views, where they were tried
    choice: str = ""  # how far validation images carry the choice of the views, in words; empty without a choice
    known: int | None = 0  # images that trained the model or chose its weights; None where nothing tells

    @property
    def accuracy(self) -> float:
        """On all images."""
        return self.scores.accuracy

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% interval of the accuracy."""
        return self.scores.interval()

    def __repr__(self) -> str:
        low, high = self.interval
        images = plural(self.scores.images, "photo")
        return f"Evaluation(accuracy {self.accuracy:.4f} ({low:.3f} .. {high:.3f}) on {images})"

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""

        def short(scores: Scores) -> dict[str, float]:
            return {"accuracy": scores.accuracy, "loss": scores.loss}

        found: dict[str, Any] = {"views": self.views}
        if self.validation:
            found["validation"] = {name: short(scores) for name, scores in self.validation.items()}
        if self.one_view:
            found["one_view"] = short(self.one_view)
        if self.choice:
            found["choice"] = self.choice
        return found | self.scores.to_dict(self.classes)


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """A network, and a dataset with the classes that it knows."""

    network: nn.Module
    info: ModelInfo
    runtime: Runtime
    dataset: ImageDataset
    batch_size: int = 32

    @functools.cached_property
    def labels(self) -> list[int]:
        """The model's label of each image, by the names of the classes; `DataError` if it does not know one."""
        dataset, classes = self.dataset, self.info.classes
        unknown = [name for name in dataset.classes if name not in classes]
        if unknown:
            named = ", ".join(printable(name, 40) for name in unknown[:5]) + (" ..." if unknown[5:] else "")
            fix = f"name the class folders as the model does: {printable(', '.join(classes), 300)}"
            raise DataError(f"the model has no class {named}", fix)
        return [classes.index(dataset.classes[label]) for label in dataset.labels]

    def predict(self, indices: Sequence[int], views: str = "none") -> Predictions:
        """Predictions for images of the dataset; `views` is a key of `VIEWS`."""
        files = [self.dataset.root / self.dataset.paths[index] for index in indices]
        labels, network = [self.labels[index] for index in indices], (self.network, self.info.preprocessing)
        return predict_images(*network, files, labels, self.runtime, views, self.batch_size)

    def evaluate(
        self, indices: Sequence[int], views: str, temperature: float, tried: dict[str, Scores] | None = None
    ) -> Evaluation:
        """Scores of images at a temperature; `tried` are the scores of the validation images by views."""
        plain, one_view = self.predict(indices), None
        if views != "none" or tried:
            one_view = score(plain.logits / self.info.temperature, plain.labels)
        labels, classes = plain.labels, self.info.classes
        logits = (plain if views == "none" else self.predict(indices, views)).logits / temperature
        rows = prediction_rows([self.dataset.paths[i] for i in indices], logits, labels, classes)
        return Evaluation(classes, score(logits, labels), views, rows, one_view, tried or {})


def evaluate_run(
    folder: Path, split: str = "test", views: str = "none", data: str = "", device: str = "auto", batch_size: int = 32
) -> Evaluation:
    """Evaluates a run on its own images; `data` is where they are now, if they have moved.

    `views` is a key of `VIEWS`, or auto for the views with the lowest validation loss.
    """
    check_choices(split, views)
    run, network = Experiment.open(folder, device, data)
    model = TrainedModel(network, run.info, run.runtime, run.dataset, batch_size)
    mirror = run.info.mirror
    if views != "none" and mirror and not mirrors_in_training(run.config):  # so nothing has measured it yet
        measured = (run.filtered, run.splits, run.features, shared_copy(network))
        mirror = choose_mirror(run.config, *measured, used=True)
    _check_views(views, mirror)
    if views == "none":
        return model.evaluate(run.splits[split], views, run.info.temperature)
    found: dict[str, Predictions] = {}
    possible = [name for name in VIEWS if mirror or name not in MIRRORED_VIEWS]
    for name in possible if views == "auto" else ("none", views):
        found[name] = model.predict(run.splits["val"], name)
    labels = found["none"].labels
    temperatures = {name: fit_temperature(val.logits, labels) for name, val in found.items()}
    logits = {name: val.logits / temperatures[name] for name, val in found.items()}
    tried = {name: score(each, labels) for name, each in logits.items()}
    if views == "auto":
        views = min(tried, key=lambda name: tried[name].loss)
    evaluation = model.evaluate(run.splits[split], views, temperatures[views], tried)
    if views == "none":
        return evaluation
    choice = describe_choice(*loss_change(logits["none"], logits[views], labels), len(labels))
    return dataclasses.replace(evaluation, choice=choice)


def evaluate_data(
    predictor: Predictor,
    path: Path,
    dataset: ImageDataset,
    split: str = "",
    views: str = "none",
    batch_size: int = 32,
) -> Evaluation:
    """Evaluates a model on other labeled images, whose classes have the names of its own.

    `path` is the run or the weights file that it was loaded from. `split` uses only the images that the source itself
    puts into it. `views` is a key of `VIEWS`.

    Raises:
        DataError: no images of the split, or a class that the model does not know.
    """
    check_choices(split, views)
    if views == "auto":
        raise UsageError("--tta auto chooses on the validation photos of a run", "give only the run")
    # A copy, because fusion observes the network by hooks, while other threads may predict.
    network, info, runtime = shared_copy(predictor.network), predictor.info, predictor.runtime
    _check_views(views, info.mirror)
    chosen = [index for index, name in enumerate(dataset.paths) if split in ("", dataset.split.get(name))]
    if not chosen:
        raise DataError(f"{printable(dataset.name)} has no {split} photos", "leave out --subset")
    model = TrainedModel(network, info, runtime, dataset, batch_size)
    found = model.evaluate(chosen, views, info.temperature)
    return dataclasses.replace(found, known=count_known(path, dataset, chosen))


def check_choices(split: str, views: str) -> None:
    """Raises UsageError for an unknown split or unknown views."""
    if split not in ("", *SPLITS):
        raise UsageError(f"--subset {printable(split)} is not a valid split", f"use {', '.join(SPLITS)}")
    if views not in (*VIEWS, "auto"):
        what = f"--tta {printable(views)} is not a valid choice of views"
        raise UsageError(what, f"use auto, {', '.join(VIEWS)}")


def _check_views(views: str, mirror: bool) -> None:
    """Refuses views that mirror an image where a mirrored image may show another class."""
    if views in MIRRORED_VIEWS and not mirror:  # guard: D40 views
        what = f"--tta {views} mirrors photos, and for this model a mirror turns one class into another"
        raise UsageError(what, f"use {', '.join(name for name in VIEWS if name not in MIRRORED_VIEWS)}")


def rewrite_results(folder: Path, device: str = "auto", data: str = "") -> None:
    """Tests a finished run again, on its images in `data` if they have moved, and replaces its results."""
    experiment, network = Experiment.open(folder, device, data)
    best = safe_load(folder / MODEL_FILE)[1].get("best", {})
    with reading(folder / MODEL_FILE, "the weights of a run", ModelFileError):
        if best != {}:
            check_row(best)
    metrics = folder / "metrics.json"
    old = read_json(metrics, "the result of a run", {"changes?": [object]}) if metrics.is_file() else {}
    state = RunState(history=read_history(folder), best=best, changes=old.get("changes") or [])
    write_results(experiment, network, state)


def count_known(path: Path, dataset: ImageDataset, indices: Sequence[int]) -> int | None:
    """Images that trained the run or chose its weights, by their content; None for a weights file alone."""
    split_file = (path if path.is_dir() else path.parent) / "split.json"
    if not split_file.is_file():
        return None
    splits = read_split(split_file)["splits"]
    marks = {*splits["train"].values(), *splits["val"].values()}
    return sum(fingerprint(dataset.root / dataset.paths[index]) in marks for index in indices)
