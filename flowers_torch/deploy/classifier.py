"""Classes and probabilities of photos, from a weights file alone."""

import dataclasses
import glob
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from flowers_torch.accelerate import AUTO, Acceleration
from flowers_torch.data.augment.per_image import enough_side, eval_transform
from flowers_torch.data.images import is_image_name, load_image
from flowers_torch.errors import DataError, ResourceError, UsageError, printable
from flowers_torch.evaluation.gradcam import grad_cam, overlay, seen_picture
from flowers_torch.evaluation.predictions import collect
from flowers_torch.evaluation.selective import Threshold, choose_threshold, read_curve, read_ood_detector
from flowers_torch.files.download import fetch_bytes
from flowers_torch.models.checkpoint import ModelInfo, load_classifier
from flowers_torch.training.device import Runtime
from flowers_torch.training.step import predict_logits

Photo = Path | str  # a file, or an http(s) address

STRANGE = "unlike the training photos"
IMPROBABLE = "too improbable"


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What the network says of one photo."""

    file: str
    classes: tuple[str, ...] = ()  # the likeliest first
    probabilities: tuple[float, ...] = ()
    doubt: str = ""  # why not to believe it: STRANGE or IMPROBABLE
    error: str = ""  # why there is no answer

    def to_dict(self) -> dict[str, Any]:
        """As JSON wants it."""
        if self.error:
            return {"file": self.file, "error": self.error}
        pairs = zip(self.classes, self.probabilities, strict=True)
        classes = [{"class": name, "probability": p} for name, p in pairs]
        return {"file": self.file, "classes": classes, "unsure": bool(self.doubt), "doubt": self.doubt}


@dataclasses.dataclass
class Classifier:
    """A trained network with its record, ready to answer.

    Attributes:
        model: In inference mode, on the device of `runtime`.
        record: Class names, preprocessing, temperature, and the limits of what the network knows.
        runtime: Device and precision.
        acceleration: The tricks in use.
        answering: The model, or a view of it that answers sooner.
    """

    model: nn.Module
    info: ModelInfo
    runtime: Runtime
    acceleration: Acceleration = AUTO

    def __post_init__(self) -> None:
        self.familiar = read_ood_detector(self.info.selective)
        size = self.info.preprocessing.size
        self.answering = self.acceleration.training_network(self.model.eval(), self.runtime, size)

    @classmethod
    def load(cls, path: Path, runtime: Runtime) -> "Classifier":
        """Reads `model.safetensors` or the run folder that holds it."""
        model, info = load_classifier(path)
        return cls(runtime.place(model), info, runtime)

    def logits(self, photos: Sequence[Path]) -> Tensor:
        """Logits (N, classes) of photos that can all be read, as the network computes them."""
        batch = self._batch([self._read(photo) for photo in photos])
        return predict_logits(self.answering, [batch], self.runtime)[0]

    def threshold(self, max_error: float) -> Threshold:
        """The probability from which on validation erred no more often than in this share of answers.

        Raises:
            UsageError: the file knows no trade-off, or even its surest answers erred more often.
        """
        return choose_threshold(read_curve(self.info.selective), max_error)

    def predict(
        self, photos: Sequence[Photo], top: int = 3, batch_size: int = 32, least: float = 0.0
    ) -> Iterator[Prediction]:
        """Answers for each photo in order; one that cannot be read gets an answer with its error.

        Args:
            photos: Files and addresses.
            top: Classes in each answer.
            batch_size: Photos computed at once.
            least: Probability below which an answer is in doubt.
        """
        for start in range(0, len(photos), batch_size):
            inputs: list[Tensor] = []
            errors: dict[int, str] = {}
            batch = photos[start : start + batch_size]
            for place, photo in enumerate(batch):
                try:
                    inputs.append(self._read(photo))
                except (DataError, ResourceError) as error:
                    errors[place] = str(error)
            answers = iter(self.answer(inputs, top, least))
            for place, photo in enumerate(batch):
                if place in errors:
                    yield Prediction(os.fspath(photo), error=errors[place])
                else:
                    yield dataclasses.replace(next(answers), file=os.fspath(photo))

    @property
    def enough_side(self) -> int:
        """Shorter side that a photo needs, for `load_image`."""
        return enough_side(self.info.preprocessing.size, self.info.preprocessing.crop)

    def explain(self, photo: Photo) -> Image.Image:
        """What the network sees of a photo, yellow where it speaks for the likeliest class (Grad-CAM).

        Raises:
            DataError: the photo cannot be read.
            UsageError: the network has no map of places.
        """
        return self.explain_inputs([self._read(photo)])[0]

    def explain_inputs(self, inputs: Sequence[Tensor]) -> list[Image.Image]:
        """As `explain`, of photos that are prepared already."""
        heat = grad_cam(self.model, self.runtime.images(torch.stack(list(inputs))))
        mean, std = self.info.preprocessing.mean, self.info.preprocessing.std
        return [overlay(seen_picture(p, mean, std), h) for p, h in zip(inputs, heat, strict=True)]

    def prepare(self, image: Image.Image) -> Tensor:
        """A photo, upright RGB, as the network wants it (3, H, W)."""
        transform = eval_transform(**dataclasses.asdict(self.info.preprocessing))
        pixels: Tensor = transform(image)
        return pixels

    def answer(self, inputs: Sequence[Tensor], top: int = 3, least: float = 0.0) -> list[Prediction]:
        """Answers to photos that are prepared already, without their files; all computed at once.

        Args:
            inputs: From `prepare`.
            top: Classes in each answer.
            least: Probability below which an answer is in doubt.
        """
        if not inputs:
            return []
        answers = collect(self.answering, [self._batch(inputs)], self.runtime)
        probabilities = (answers.logits / self.info.temperature).softmax(1)
        best = probabilities.topk(min(top, probabilities.shape[1]))
        strange = [False] * len(inputs)
        if self.familiar is not None:
            strange = (self.familiar.distance(answers.features) > self.familiar.limit).tolist()
        found = []
        for indices, values, far in zip(best.indices.tolist(), best.values.tolist(), strange, strict=True):
            doubt = STRANGE if far else IMPROBABLE if values[0] < least else ""
            names = tuple(self.info.classes[i] for i in indices)
            found.append(Prediction("", names, tuple(values), doubt))
        return found

    def _read(self, photo: Photo) -> Tensor:
        return self.prepare(_open(photo, self.enough_side))

    @staticmethod
    def _batch(inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        return torch.stack(list(inputs)), torch.zeros(len(inputs), dtype=torch.long)


def is_address(photo: Photo) -> bool:
    """Whether it is an http(s) address."""
    return isinstance(photo, str) and photo.lower().startswith(("http://", "https://"))


def _open(photo: Photo, at_least: int) -> Image.Image:
    if not is_address(photo):
        return load_image(photo, at_least=at_least)
    content = io.BytesIO(fetch_bytes(str(photo)))
    content.name = str(photo)  # for the message, should it be no photo
    return load_image(content, at_least=at_least)


def find_inputs(patterns: Sequence[str]) -> list[Photo]:
    """Photos named by addresses, files, folders (searched through) and globs, each once, in order.

    Raises:
        UsageError: nothing of that name, or no photo there.
    """
    found: dict[Photo, None] = {}
    for pattern in patterns:
        found |= dict.fromkeys([pattern] if is_address(pattern) else find_files([pattern]))
    return list(found)


def find_files(patterns: Sequence[str]) -> list[Path]:
    """Photos named by files, folders (searched through) and globs, each once, in order.

    Raises:
        UsageError: nothing of that name, or no photo there.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        path = Path(pattern).expanduser()
        if path.is_dir():
            matches = sorted(p for p in path.rglob("*") if is_image_name(p) and p.is_file())
        elif path.exists():
            matches = [path]
        else:
            matches = sorted(Path(match) for match in glob.glob(os.path.expanduser(pattern), recursive=True))
        if not matches:  # guard: K07
            raise UsageError(f"no photo at {printable(pattern)}", "name files, folders or globs")
        found |= dict.fromkeys(matches)
    return list(found)
