"""Evaluation of a trained model on labeled images: those of its run, or others."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from flowers_torch.data.dataset import ImageDataset
from flowers_torch.data.sources.open import open_dataset
from flowers_torch.data.splits.split_file import fingerprint, read_split
from flowers_torch.errors import DataError, UsageError, printable
from flowers_torch.evaluation.calibration import fit_temperature
from flowers_torch.evaluation.evaluate import VIEWS, predict_images
from flowers_torch.evaluation.metrics import Scores, prediction_rows, score
from flowers_torch.evaluation.predictions import Predictions
from flowers_torch.files.tensors import safe_load
from flowers_torch.models.checkpoint import ModelInfo, load_classifier
from flowers_torch.report.run_summary import read_history
from flowers_torch.runs.experiment import Experiment
from flowers_torch.runs.results import write_results
from flowers_torch.training.checkpoint import MODEL_FILE, RunState
from flowers_torch.training.device import Runtime, choose_runtime


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A model on labeled images."""

    classes: tuple[str, ...]
    scores: Scores  # with the chosen views
    views: str  # key of `VIEWS`
    rows: list[dict[str, Any]]  # one for each image, as in predictions.csv
    one_view: Scores | None = None  # the scores without test-time augmentation, if there was any
    validation: dict[str, Scores] = dataclasses.field(default_factory=dict)  # by views, where they were tried
    known: int = 0  # images that trained the model or chose its weights

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""

        def short(scores: Scores) -> dict[str, float]:
            return {"accuracy": scores.accuracy, "loss": scores.loss}

        found: dict[str, Any] = {"views": self.views}
        if self.validation:
            found["validation"] = {name: short(scores) for name, scores in self.validation.items()}
        if self.one_view:
            found["one_view"] = short(self.one_view)
        return found | self.scores.to_dict(self.classes)


@dataclasses.dataclass(frozen=True)
class _Model:
    """A network and labeled images for it."""

    network: nn.Module
    info: ModelInfo
    runtime: Runtime
    dataset: ImageDataset
    labels: list[int]
    batch_size: int

    def predict(self, indices: Sequence[int], views: str = "none") -> Predictions:
        paths = [self.dataset.root / self.dataset.paths[index] for index in indices]
        labels, network = [self.labels[index] for index in indices], (self.network, self.info.preprocessing)
        return predict_images(*network, paths, labels, self.runtime, views, self.batch_size)

    def evaluate(self, indices: Sequence[int], views: str, temperature: float, **more: Any) -> Evaluation:
        plain, one_view = self.predict(indices), None
        if views != "none" or "validation" in more:
            one_view = score(plain.logits / self.info.temperature, plain.labels)
        labels, classes = plain.labels, self.info.classes
        logits = (plain if views == "none" else self.predict(indices, views)).logits / temperature
        rows = prediction_rows([self.dataset.paths[i] for i in indices], logits, labels, classes)
        return Evaluation(classes, score(logits, labels), views, rows, one_view, **more)


def evaluate_run(
    folder: Path,
    split: str = "test",
    views: str = "none",
    data: str = "",
    device: str = "auto",
    batch_size: int = 32,
) -> Evaluation:
    """Evaluates a run on its own images.

    Args:
        split: train, val or test.
        views: Key of `VIEWS`, or auto for the views with the lowest validation loss.
        data: Where the images are now; empty if they have not moved.
    """
    run, network = Experiment.open(folder, device, data)
    labels = translate_labels(run.dataset, run.info.classes)
    model = _Model(network, run.info, run.runtime, run.dataset, labels, batch_size)
    if views == "none":
        return model.evaluate(run.splits[split], views, run.info.temperature)
    tried = {}
    for name in VIEWS if views == "auto" else ("none", views):
        val = model.predict(run.splits["val"], name)
        fitted = fit_temperature(val.logits, val.labels)
        tried[name] = (score(val.logits / fitted, val.labels), fitted)
    best = min(tried, key=lambda name: tried[name][0].loss) if views == "auto" else views
    validation = {name: scores for name, (scores, _) in tried.items()}
    return model.evaluate(run.splits[split], best, tried[best][1], validation=validation)


def evaluate_data(
    path: Path, data: str, split: str = "", views: str = "none", device: str = "auto", batch_size: int = 32
) -> Evaluation:
    """Evaluates a model on other labeled images, in folders named after its classes.

    Args:
        path: A run folder or a weights file.
        data: What `open_dataset` takes.
        split: Use only the images that `data` itself puts into this split; empty for all.
        views: Key of `VIEWS`.

    Raises:
        DataError: no images of the split, or a class that the model does not know.
    """
    if views == "auto":
        raise UsageError("--tta auto chooses on the validation photos of a run", "give only the run")
    network, info = load_classifier(path)
    runtime, dataset = choose_runtime(device, "fp32"), open_dataset(data)
    chosen = [index for index, name in enumerate(dataset.paths) if split in ("", dataset.split.get(name))]
    if not chosen:
        raise DataError(f"{printable(data)} has no {split} photos", "leave out --subset")
    labels = translate_labels(dataset, info.classes)
    model = _Model(runtime.place(network), info, runtime, dataset, labels, batch_size)
    known = count_known(path, dataset, chosen)
    return model.evaluate(chosen, views, info.temperature, known=known)


def rewrite_results(folder: Path, device: str = "auto", data: str = "") -> None:
    """Tests a finished run again and replaces its results, as training writes them.

    Args:
        data: Where the images are now; empty if they have not moved.
    """
    experiment, network = Experiment.open(folder, device, data)
    best = safe_load(folder / MODEL_FILE)[1].get("best", {})
    metrics = folder / "metrics.json"
    old = json.loads(metrics.read_text()) if metrics.is_file() else {}
    state = RunState(history=read_history(folder), best=best, changes=old.get("changes", []))
    write_results(experiment, network, state)


def count_known(path: Path, dataset: ImageDataset, indices: Sequence[int]) -> int:
    """Images that trained the run or chose its weights, by path and content; 0 for a weights file alone."""
    split_file = (path if path.is_dir() else path.parent) / "split.json"
    if not split_file.is_file():
        return 0
    splits = read_split(split_file)["splits"]
    marks = splits["train"] | splits["val"]
    names = [dataset.paths[index] for index in indices]
    return sum(fingerprint(dataset.root / name) == marks[name] for name in names if name in marks)


def translate_labels(dataset: ImageDataset, classes: Sequence[str]) -> list[int]:
    """The model's label of each image, by the names of the classes.

    Raises:
        DataError: the images have classes that the model does not know.
    """
    unknown = [name for name in dataset.classes if name not in classes]
    if unknown:
        named = ", ".join(printable(name, 40) for name in unknown[:5]) + (" ..." if unknown[5:] else "")
        fix = f"name the class folders as the model does: {printable(', '.join(classes), 300)}"
        raise DataError(f"the model has no class {named}", fix)
    places = {name: place for place, name in enumerate(classes)}
    return [places[dataset.classes[label]] for label in dataset.labels]
