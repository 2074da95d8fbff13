"""Classes and probabilities of photos, from a weights file alone."""

import dataclasses
import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from flowers_torch.data.augment import eval_transform
from flowers_torch.data.images import is_photo_name, load_image
from flowers_torch.errors import DataError, UsageError, printable
from flowers_torch.models.classifier import Record, load_classifier
from flowers_torch.training.engine import predict_logits
from flowers_torch.training.runtime import Runtime


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What the network says of one photo."""

    file: str
    classes: tuple[str, ...] = ()  # the likeliest first
    probabilities: tuple[float, ...] = ()
    error: str = ""  # why there is no answer


@dataclasses.dataclass
class Classifier:
    """A trained network with its record, ready to answer.

    Attributes:
        model: In inference mode, on the device of `runtime`.
        record: Class names and preprocessing.
        runtime: Device and precision.
    """

    model: nn.Module
    record: Record
    runtime: Runtime

    @classmethod
    def load(cls, path: Path, runtime: Runtime) -> "Classifier":
        """Reads `model.safetensors` or the run folder that holds it."""
        model, record = load_classifier(path)
        return cls(runtime.place(model), record, runtime)

    def logits(self, photos: Sequence[Path]) -> Tensor:
        """Logits (N, classes) of photos that can all be read."""
        return self._compute([self._read(photo) for photo in photos])

    def predict(self, photos: Sequence[Path], top: int = 3, batch_size: int = 32) -> Iterator[Prediction]:
        """Answers for each photo in order; one that cannot be read gets an answer with its error.

        Args:
            photos: Files.
            top: Classes in each answer.
            batch_size: Photos computed at once.
        """
        top = min(top, len(self.record.classes))
        for start in range(0, len(photos), batch_size):
            inputs: list[Tensor] = []
            errors: dict[int, str] = {}
            batch = photos[start : start + batch_size]
            for place, photo in enumerate(batch):
                try:
                    inputs.append(self._read(photo))
                except DataError as error:
                    errors[place] = str(error)
            answers = self._answers(inputs, top)
            for place, photo in enumerate(batch):
                if place in errors:
                    yield Prediction(os.fspath(photo), error=errors[place])
                else:
                    yield Prediction(os.fspath(photo), *next(answers))

    def _answers(self, inputs: list[Tensor], top: int) -> Iterator[tuple[tuple[str, ...], tuple[float, ...]]]:
        if not inputs:
            return
        best = self._compute(inputs).softmax(1).topk(top)
        for indices, values in zip(best.indices.tolist(), best.values.tolist(), strict=True):
            yield tuple(self.record.classes[i] for i in indices), tuple(values)

    def _read(self, photo: Path) -> Tensor:
        transform = eval_transform(**dataclasses.asdict(self.record.preprocessing))
        image: Tensor = transform(load_image(photo))
        return image

    def _compute(self, inputs: list[Tensor]) -> Tensor:
        batch = (torch.stack(inputs), torch.zeros(len(inputs)))
        return predict_logits(self.model, [batch], self.runtime)[0]


def find_files(patterns: Sequence[str]) -> list[Path]:
    """Photos named by files, folders (searched through) and globs, each once, in order.

    Raises:
        UsageError: nothing of that name, or no photo there.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        path = Path(pattern).expanduser()
        if path.is_dir():
            matches = sorted(p for p in path.rglob("*") if is_photo_name(p) and p.is_file())
        elif path.exists():
            matches = [path]
        else:
            matches = sorted(Path(match) for match in glob.glob(os.path.expanduser(pattern), recursive=True))
        if not matches:
            raise UsageError(f"no photo at {printable(pattern)}", "name files, folders or globs")
        found |= dict.fromkeys(matches)
    return list(found)
