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
from flowers_torch.evaluation.evaluate import predict_images
from flowers_torch.evaluation.metrics import Scores, score
from flowers_torch.evaluation.predictions import Predictions
from flowers_torch.evaluation.summary import prediction_rows
from flowers_torch.evaluation.tta import VIEWS
from flowers_torch.files.tensors import safe_load
from flowers_torch.models.checkpoint import ModelInfo, load_classifier
from flowers_torch.report.run_summary import read_history
from flowers_torch.runs.experiment import Experiment
from flowers_torch.runs.results import write_results
from flowers_torch.training.checkpoint import MODEL_FILE, RunState
from flowers_torch.training.device import Runtime, choose_runtime


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A model on labeled images.

    Attributes:
        classes: Of the model.
        scores: With the chosen views.
        views: Key of `VIEWS`.
        rows: A row for each image, as in predictions.csv.
        one_view: The scores without test-time augmentation, if there was any.
        validation: Scores on the validation images by views, where views were tried on them.
        known: Images that trained the model or chose its weights.
    """

    classes: tuple[str, ...]
    scores: Scores
    views: str
    rows: list[dict[str, Any]]
    one_view: Scores | None = None
    validation: dict[str, Scores] = dataclasses.field(default_factory=dict)
    known: int = 0

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
        labels = [self.labels[index] for index in indices]
        preprocessing = self.info.preprocessing
        return predict_images(
            self.network, preprocessing, paths, labels, self.runtime, views, self.batch_size
        )

    def evaluation(
        self, indices: Sequence[int], predictions: Predictions, temperature: float, **more: Any
    ) -> Evaluation:
        logits, classes = predictions.logits / temperature, self.info.classes
        paths = [self.dataset.paths[index] for index in indices]
        rows = prediction_rows(paths, logits, predictions.labels, classes)
        return Evaluation(classes, score(logits, predictions.labels), rows=rows, **more)


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
        folder: The finished run.
        split: train, val or test.
        views: Key of `VIEWS`, or auto for the views with the lowest validation loss.
        data: Where the images of the run are now; empty if they have not moved.
        device: Where to compute.
        batch_size: Images per batch.
    """
    run, network = Experiment.open(folder, device, data)
    labels = translate_labels(run.dataset, run.info.classes)
    model = _Model(network, run.info, run.runtime, run.dataset, labels, batch_size)
    chosen = run.splits[split]
    plain = model.predict(chosen)
    temperature = run.info.temperature
    if views == "none":
        return model.evaluation(chosen, plain, temperature, views=views)
    tried = {}
    for name in VIEWS if views == "auto" else ("none", views):
        val = model.predict(run.splits["val"], name)
        fitted = fit_temperature(val.logits, val.labels)
        tried[name] = (score(val.logits / fitted, val.labels), fitted)
    best = min(tried, key=lambda name: tried[name][0].loss) if views == "auto" else views
    final = plain if best == "none" else model.predict(chosen, best)
    validation = {name: scores for name, (scores, _) in tried.items()}
    one_view = score(plain.logits / temperature, plain.labels)
    return model.evaluation(
        chosen, final, tried[best][1], views=best, one_view=one_view, validation=validation
    )


def evaluate_data(
    path: Path, data: str, split: str = "", views: str = "none", device: str = "auto", batch_size: int = 32
) -> Evaluation:
    """Evaluates a model on other labeled images, in folders named after its classes.

    Args:
        path: A run folder or a weights file.
        data: What `open_dataset` takes.
        split: Use only the images that `data` itself puts into this split; empty for all.
        views: Key of `VIEWS`.
        device: Where to compute.
        batch_size: Images per batch.

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
    plain = model.predict(chosen)
    known = count_known(path, dataset, chosen)
    if views == "none":
        return model.evaluation(chosen, plain, info.temperature, views=views, known=known)
    final, one_view = model.predict(chosen, views), score(plain.logits / info.temperature, plain.labels)
    return model.evaluation(chosen, final, info.temperature, views=views, one_view=one_view, known=known)


def rewrite_results(folder: Path, device: str = "auto", data: str = "") -> None:
    """Tests a finished run again and replaces its results, as training writes them.

    Args:
        folder: The run folder.
        device: Where to compute.
        data: Where the images of the run are now; empty if they have not moved.
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
        named = ", ".join(printable(name, 40) for name in unknown[:5])
        known = printable(", ".join(classes), 300)
        raise DataError(
            f"the model has no class {named}" + (" ..." if len(unknown) > 5 else ""),
            f"name the class folders as the model does: {known}",
        )
    places = {name: place for place, name in enumerate(classes)}
    return [places[dataset.classes[label]] for label in dataset.labels]
