"""Predictions of a network, and the file that stores those of a finished run."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flowers_torch.errors import DataError, printable
from flowers_torch.files.reading import check, reading
from flowers_torch.files.tensors import safe_load, safe_save
from flowers_torch.models.checkpoint import CLASSES, TEMPERATURE, check_classes
from flowers_torch.models.heads import logits_and_features
from flowers_torch.shell import command_line
from flowers_torch.training.device import Runtime
from flowers_torch.training.distributed import Distributed
from flowers_torch.training.step import predict_logits

PREDICTIONS_FILE = "predictions.safetensors"
FORM = {"classes": CLASSES, "temperature": TEMPERATURE, "paths": {str: [str]}}  # of its metadata


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Logits (N, classes), labels (N,) and the classifier's input features (N, D), (N, 0) if unknown."""

    logits: Tensor
    labels: Tensor
    features: Tensor

    def gathered(self, distributed: Distributed, count: int, batch_size: int) -> "Predictions":
        """The predictions of all processes, each of which has those of its batches of `count` images."""
        values = self.logits, self.labels, self.features
        return Predictions(*(distributed.gather(value, count, batch_size) for value in values))


def collect(
    model: nn.Module,
    batches: Iterable[Sequence[Tensor]],
    runtime: Runtime,
    after_batch: Callable[[int], Any] = lambda images: None,
    with_features: bool = True,
) -> Predictions:
    """`predict_logits`, with the features that enter the classifier of a timm-style network, if they are wanted."""
    features: list[Tensor] = []

    def forward(images: Tensor) -> Tensor:
        logits, entered = logits_and_features(model, images)
        entered = entered if with_features else entered.new_empty(len(entered), 0)
        logits, entered = logits.float(), runtime.to_host(entered.float())
        features.append(entered)  # nothing after this lacks memory
        return logits

    logits, labels = predict_logits(model, batches, runtime, after_batch, forward)
    return Predictions(logits, labels, torch.cat(features))


@dataclasses.dataclass(frozen=True)
class RunPredictions:
    """Predictions of a finished run, by split ("val", "test")."""

    classes: tuple[str, ...]
    temperature: float
    paths: dict[str, tuple[str, ...]]
    logits: dict[str, Tensor]
    labels: dict[str, Tensor]
    projection: Tensor | None = None  # t-SNE of the features of every nth test image (M, 2)

    def calibrated(self, split: str) -> Tensor:
        """Logits divided by the temperature."""
        return self.logits[split] / self.temperature


def save_predictions(
    folder: Path,
    classes: Sequence[str],
    temperature: float,
    splits: Mapping[str, tuple[Sequence[str], Predictions]],
    projection: Tensor | None = None,
) -> None:
    """Writes `predictions.safetensors`: paths, logits and labels of each split, and the projection."""
    tensors: dict[str, Tensor] = {} if projection is None else {"test/projection": projection}
    for split, (_, predictions) in splits.items():
        tensors |= {f"{split}/logits": predictions.logits, f"{split}/labels": predictions.labels}
    metadata: dict[str, Any] = {"classes": list(classes), "temperature": temperature}
    metadata["paths"] = {split: list(paths) for split, (paths, _) in splits.items()}
    safe_save(tensors, folder / PREDICTIONS_FILE, metadata)


def load_predictions(folder: Path) -> RunPredictions:
    """Reads what `save_predictions` wrote.

    Raises:
        DataError: the run has no predictions, or the file holds something else.
        ModelFileError: the file is damaged.
    """
    path = folder / PREDICTIONS_FILE
    if not path.is_file():
        command = command_line("flowers-torch", "evaluate", folder, "--save")
        fix = f"finish the run, or write it with: {command}"
        raise DataError(f"{printable(folder)} holds no {PREDICTIONS_FILE}", fix)
    tensors, metadata = safe_load(path)
    with reading(path, "a valid predictions file", DataError, "train or evaluate again"):
        check(metadata, FORM)  # guard: S8 predictions
        classes, paths = check_classes(metadata["classes"]), {s: tuple(names) for s, names in metadata["paths"].items()}
        logits, labels = ({split: tensors[f"{split}/{kind}"] for split in paths} for kind in ("logits", "labels"))
        for split, names in paths.items():
            fits = logits[split].shape == (len(names), len(classes)) and logits[split].is_floating_point()
            fits = fits and bool(logits[split].isfinite().all())
            known = labels[split].shape == (len(names),) and labels[split].dtype == torch.int64
            if not (fits and known and (not names or 0 <= labels[split].min() <= labels[split].max() < len(classes))):
                raise ValueError(f"the tensors of {printable(split, 40)} do not fit its photos")  # guard: S8 logits
        projection = tensors.get("test/projection")
        if projection is not None and (projection.ndim != 2 or projection.shape[1] != 2):
            raise ValueError("its projection is not one")
    return RunPredictions(classes, float(metadata["temperature"]), paths, logits, labels, projection)
