"""What a network answered to photos, kept so that everything later is computed without running it again."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flowers_torch.errors import DataError, printable
from flowers_torch.files.tensors import safe_load, safe_save
from flowers_torch.shell import command_line
from flowers_torch.training.device import Runtime
from flowers_torch.training.step import predict_logits

PREDICTIONS_FILE = "predictions.safetensors"


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Logits (N, classes), labels (N,), and the features that the classifier saw (N, D), empty if unknown."""

    logits: Tensor
    labels: Tensor
    features: Tensor


def collect(
    model: nn.Module,
    batches: Iterable[Sequence[Tensor]],
    runtime: Runtime,
    after_batch: Callable[[int], Any] = lambda photos: None,
) -> Predictions:
    """The forward pass behind validation and test, which also keeps the input of the classifier.

    Args:
        model: A network with timm's contract; left in inference mode.
        batches: `(images, labels, ...)`.
        runtime: Device and precision.
        after_batch: Called with the number of photos of each batch.
    """
    seen: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0].flatten(1).float())

    classifier: nn.Module = model.get_classifier()  # type: ignore[operator]
    hook = classifier.register_forward_pre_hook(keep)
    try:
        logits, labels = predict_logits(model, batches, runtime, after_batch)
    finally:
        hook.remove()
    return Predictions(logits, labels, torch.cat(seen).cpu() if seen else torch.empty(len(labels), 0))


@dataclasses.dataclass(frozen=True)
class RunPredictions:
    """The answers of a finished run, by part ("val", "test")."""

    classes: tuple[str, ...]
    temperature: float  # what the logits are to be divided by
    paths: dict[str, tuple[str, ...]]
    logits: dict[str, Tensor]
    labels: dict[str, Tensor]
    places: Tensor | None = None  # of every nth test photo on a map of their features (M, 2)

    def calibrated(self, part: str) -> Tensor:
        """Logits whose softmax is what the model states as probabilities."""
        return self.logits[part] / self.temperature


def save_predictions(
    folder: Path,
    classes: Sequence[str],
    temperature: float,
    parts: Mapping[str, tuple[Sequence[str], Predictions]],
    places: Tensor | None = None,
) -> None:
    """Writes `predictions.safetensors`: paths, logits and labels of each part, and the map of the test."""
    tensors: dict[str, Tensor] = {} if places is None else {"test/places": places}
    for part, (_, answers) in parts.items():
        tensors |= {f"{part}/logits": answers.logits, f"{part}/labels": answers.labels}
    metadata: dict[str, Any] = {"classes": list(classes), "temperature": temperature}
    metadata["paths"] = {part: list(paths) for part, (paths, _) in parts.items()}
    safe_save(tensors, folder / PREDICTIONS_FILE, metadata)


def load_predictions(folder: Path) -> RunPredictions:
    """Reads what `save_predictions` wrote.

    Raises:
        DataError: the run has no predictions, because it is unfinished or older than this file.
        ModelFileError: the file is damaged.
    """
    path = Path(folder) / PREDICTIONS_FILE
    if not path.is_file():
        command = command_line("flowers-torch", "evaluate", folder, "--save")
        what = f"{printable(folder)} holds no {PREDICTIONS_FILE}"
        raise DataError(what, f"finish the run, or write it with: {command}")
    tensors, metadata = safe_load(path)
    try:
        paths = {part: tuple(names) for part, names in metadata["paths"].items()}
        return RunPredictions(
            tuple(metadata["classes"]),
            float(metadata["temperature"]),
            paths,
            {part: tensors[f"{part}/logits"] for part in paths},
            {part: tensors[f"{part}/labels"] for part in paths},
            tensors.get("test/places"),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{printable(path)} is no predictions file", "train or evaluate again") from error
