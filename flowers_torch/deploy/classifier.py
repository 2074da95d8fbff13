"""Classification of image files with a trained model."""

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
from flowers_torch.data.images import MAX_PIXELS, is_image_name, load_image
from flowers_torch.data.sources.tree import is_hidden
from flowers_torch.errors import DataError, ResourceError, UsageError, printable
from flowers_torch.evaluation.gradcam import grad_cam, input_to_image, overlay
from flowers_torch.evaluation.predictions import Predictions, collect
from flowers_torch.evaluation.selective import Threshold, choose_threshold, read_curve, read_ood_detector
from flowers_torch.files.download import fetch_bytes
from flowers_torch.files.system import expand_home
from flowers_torch.log import log
from flowers_torch.models.checkpoint import ModelInfo, load_classifier
from flowers_torch.training.device import Runtime

ImageSource = Path | str  # a file or an http(s) URL

OUT_OF_DISTRIBUTION = "unlike the training photos"
LOW_CONFIDENCE = "too improbable"


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The prediction for one image."""

    file: str
    classes: tuple[str, ...] = ()  # the most probable first
    probabilities: tuple[float, ...] = ()
    reason: str = ""  # why the model abstains: OUT_OF_DISTRIBUTION or LOW_CONFIDENCE
    error: str = ""  # why there is no prediction

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        if self.error:
            return {"file": self.file, "error": self.error}
        classes = [{"class": c, "probability": p} for c, p in zip(self.classes, self.probabilities, strict=True)]
        return {"file": self.file, "classes": classes, "abstained": bool(self.reason), "reason": self.reason}


@dataclasses.dataclass
class Classifier:
    """A trained network with its metadata, in inference mode on the device of its runtime."""

    model: nn.Module
    info: ModelInfo
    runtime: Runtime
    acceleration: Acceleration = AUTO

    def __post_init__(self) -> None:
        self.ood_detector = read_ood_detector(self.info.selective)
        preprocessing = self.info.preprocessing
        self.preprocess = eval_transform(**preprocessing.transform_options())  # of an upright RGB image
        self.enough_side = enough_side(preprocessing.size, preprocessing.crop)  # for `load_image`
        # The network that predicts: `model`, or a fused form of it that is faster.
        self.inference_model = self.acceleration.training_network(self.model.eval(), self.runtime, preprocessing.size)

    @classmethod
    def load(cls, path: Path, runtime: Runtime) -> "Classifier":
        """Loads `model.safetensors`, or the one in a run folder."""
        model, info = load_classifier(path)
        return cls(runtime.place(model), info, runtime)

    def read(self, source: ImageSource, content: bytes | None = None, max_pixels: int = MAX_PIXELS) -> Tensor:
        """An image as network input (3, size, size); with `content`, the source is only a name.

        Raises:
            DataError, ResourceError: the image cannot be read, or its URL cannot be fetched.
        """
        if content is None and is_url(source):
            content = fetch_bytes(str(source))
        file: ImageSource | io.BytesIO = source
        if content is not None:
            file = io.BytesIO(content)
            file.name = str(source)  # for error messages
        pixels: Tensor = self.preprocess(
            load_image(file, max_pixels, self.enough_side, self.info.preprocessing.value_range)
        )
        return pixels

    def logits(self, files: Sequence[Path]) -> Tensor:
        """Logits (N, classes) of readable image files, before the temperature."""
        return self._collect([self.read(file) for file in files]).logits

    def threshold(self, max_error: float) -> Threshold:
        """The confidence threshold whose error rate on new photos is at most `max_error`, on average.

        Raises:
            UsageError: the weights file has no risk-coverage curve, or no threshold has so low an error rate.
        """
        return choose_threshold(read_curve(self.info.selective), max_error)

    def predict(
        self, sources: Sequence[ImageSource], top: int = 3, batch_size: int = 32, confidence_threshold: float = 0.0
    ) -> Iterator[Prediction]:
        """Yields a prediction for each image in order; for an unreadable one, a prediction with its error.

        Each prediction has the `top` most probable classes; below the threshold the model abstains.
        """
        for start in range(0, len(sources), batch_size):
            inputs: list[Tensor] = []
            found: list[Prediction] = []
            for source in sources[start : start + batch_size]:
                try:
                    inputs.append(self.read(source))
                    found.append(Prediction(os.fspath(source)))
                except (DataError, ResourceError) as error:
                    found.append(Prediction(os.fspath(source), error=str(error)))
            predictions = iter(self.classify(inputs, top, confidence_threshold))
            for each in found:
                yield each if each.error else dataclasses.replace(next(predictions), file=each.file)

    def classify(self, inputs: Sequence[Tensor], top: int = 3, confidence_threshold: float = 0.0) -> list[Prediction]:
        """Like `predict`, for preprocessed images without file names, in one forward pass."""
        if not inputs:
            return []
        predictions = self._collect(inputs)
        probabilities = (predictions.logits / self.info.temperature).softmax(1)
        best = probabilities.topk(min(top, probabilities.shape[1]))
        is_ood = [False] * len(inputs)
        if self.ood_detector is not None:
            is_ood = (self.ood_detector.distance(predictions.features) > self.ood_detector.threshold).tolist()
        found = []
        for indices, values, ood in zip(best.indices.tolist(), best.values.tolist(), is_ood, strict=True):
            low = LOW_CONFIDENCE if values[0] < confidence_threshold else ""
            names = tuple(self.info.classes[i] for i in indices)
            found.append(Prediction("", names, tuple(values), OUT_OF_DISTRIBUTION if ood else low))
        return found

    def explain(self, source: ImageSource) -> Image.Image:
        """The network's view of an image with the Grad-CAM heatmap of the predicted class.

        Raises:
            DataError, UsageError: the image cannot be read, or the network has no spatial feature map.
        """
        return self.explain_inputs([self.read(source)])[0]

    def explain_inputs(self, inputs: Sequence[Tensor]) -> list[Image.Image]:
        """Like `explain`, for preprocessed images."""
        heat = grad_cam(self.model, self.runtime.images(torch.stack(list(inputs))))
        mean, std = self.info.preprocessing.mean, self.info.preprocessing.std
        return [overlay(input_to_image(x, mean, std), h) for x, h in zip(inputs, heat, strict=True)]

    def _collect(self, inputs: Sequence[Tensor]) -> Predictions:
        batch = torch.stack(list(inputs)), torch.zeros(len(inputs), dtype=torch.long)
        return collect(self.inference_model, [batch], self.runtime)


def is_url(source: ImageSource) -> bool:
    """Whether a source is an http(s) URL."""
    return isinstance(source, str) and source.lower().startswith(("http://", "https://"))


def find_inputs(patterns: Sequence[str]) -> list[ImageSource]:
    """Like `find_files`; http(s) URLs are returned as they are."""
    found: dict[ImageSource, None] = {}
    for pattern in patterns:
        found |= dict.fromkeys([pattern] if is_url(pattern) else find_files([pattern]))
    return list(found)


def find_files(patterns: Sequence[str]) -> list[Path]:
    """Image files named by paths, folders (searched recursively) and globs, each once, in order.

    Raises:
        UsageError: a pattern matches no image.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        path = expand_home(pattern)
        if os.path.isdir(path):
            matches = []
            for at, folders, names in os.walk(path, onerror=_warn):
                folders[:] = [name for name in folders if not is_hidden(name)]
                # guard: S9 find
                matches += [path for path in (Path(at, name) for name in names) if is_image_name(path)]
            matches = [path for path in matches if not is_hidden(path.name)]
            matches.sort()
        elif os.path.lexists(path):
            matches = [path]
        else:
            matches = sorted(map(Path, glob.glob(str(path), recursive=True)))
        if not matches:  # guard: K07
            raise UsageError(f"no photo at {printable(pattern)}", "name files, folders or globs")
        found |= dict.fromkeys(matches)
    return list(found)


def _warn(error: OSError) -> None:
    log.warning(f"WARNING  cannot read {printable(error.filename)}: {error.strerror}; its photos are left out")
