"""Predictions of a trained network for images. Photos are read by threads while the network computes."""

import collections
import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from flowers_torch.accelerate import AUTO, Acceleration
from flowers_torch.data.augment.per_image import enough_side, eval_transform
from flowers_torch.data.images import MAX_PIXELS
from flowers_torch.data.pixel_budget import hold_pixels
from flowers_torch.deploy.inputs import ImageSource, name_of, open_image
from flowers_torch.errors import DataError, FlowersError, ResourceError, UsageError
from flowers_torch.evaluation.prediction_sets import prediction_sets, set_threshold
from flowers_torch.evaluation.predictions import Predictions, collect
from flowers_torch.evaluation.selective import Threshold, choose_threshold, read_curve, read_ood_detector
from flowers_torch.files.system import usable_cores
from flowers_torch.models.checkpoint import ModelInfo, load_classifier
from flowers_torch.training.device import Runtime

OUT_OF_DISTRIBUTION = "unlike the training photos"
LOW_CONFIDENCE = "too improbable"
MAX_READERS = 16  # threads; Python's lock leaves no work for more
BATCHES_AHEAD = 2  # that are read while one is computed


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The prediction for one image."""

    file: str
    classes: tuple[str, ...] = ()  # the most probable first
    probabilities: tuple[float, ...] = ()
    reason: str = ""  # why the model abstains: OUT_OF_DISTRIBUTION or LOW_CONFIDENCE
    error: str = ""  # why there is no prediction
    set: tuple[str, ...] = ()  # classes that contain the true one as often as was asked for; empty if nothing was

    @property
    def label(self) -> str:
        """The most probable class; empty if the image could not be read."""
        return self.classes[0] if self.classes else ""

    @property
    def probability(self) -> float:
        """That of `label`; 0 if the image could not be read."""
        return self.probabilities[0] if self.probabilities else 0.0

    @property
    def abstained(self) -> bool:
        """Whether the model is unsure, for the `reason`."""
        return bool(self.reason)

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        if self.error:
            return {"file": self.file, "error": self.error}
        classes = [{"class": c, "probability": p} for c, p in zip(self.classes, self.probabilities, strict=True)]
        found = {"file": self.file, "classes": classes, "abstained": self.abstained, "reason": self.reason}
        return found | {"set": list(self.set)} if self.set else found


@dataclasses.dataclass(frozen=True)
class ImageBatch:
    """Some images in their order: their names, the inputs of those that could be read, and the errors of the others."""

    names: list[str]
    inputs: list[Tensor]  # (3, size, size)
    errors: dict[int, FlowersError]  # by position


@dataclasses.dataclass
class Predictor:
    """A trained network with its metadata, in inference mode on the device of its runtime.

    Many threads may use one predictor: nothing about it changes after its construction.
    """

    network: nn.Module
    info: ModelInfo
    runtime: Runtime
    acceleration: Acceleration = AUTO

    def __post_init__(self) -> None:
        self.ood_detector = read_ood_detector(self.info.selective)
        preprocessing = self.info.preprocessing
        self.preprocess = eval_transform(**preprocessing.transform_options())  # of an upright RGB image
        self.enough_side = enough_side(preprocessing.size, preprocessing.crop)  # for `load_image`
        # The network that predicts: `network`, or a fused form of it that is faster.
        self.inference_network = self.acceleration.training_network(
            self.network.eval(), self.runtime, preprocessing.size
        )

    @classmethod
    def load(cls, path: Path, runtime: Runtime, acceleration: Acceleration = AUTO) -> "Predictor":
        """Loads `model.safetensors`, or the one in a run folder."""
        network, info = load_classifier(path)
        return cls(runtime.place(network), info, runtime, acceleration)

    def read(self, source: ImageSource, name: str = "", max_pixels: int = MAX_PIXELS) -> Tensor:
        """An image as network input (3, size, size); `name` is that of its errors.

        Raises:
            DataError, ResourceError: the image cannot be read, or its URL cannot be fetched.
        """
        value_range = self.info.preprocessing.value_range
        image = open_image(source, name or name_of(source), max_pixels, self.enough_side, value_range)
        with hold_pixels(image.width * image.height, max_pixels):  # one that is long and narrow is still large
            pixels: Tensor = self.preprocess(image)
        return pixels

    def read_batches(self, sources: Iterable[ImageSource], batch_size: int) -> Iterator[ImageBatch]:
        """Yields the images in order and in batches, which threads read ahead of the caller.

        At most `BATCHES_AHEAD` + 1 batches are in memory, however many sources there are.
        """
        names: collections.deque[str] = collections.deque()
        ahead: collections.deque[Future[Tensor]] = collections.deque()
        remaining = iter(sources)
        pool = ThreadPoolExecutor(min(usable_cores(), MAX_READERS), "reader")
        try:
            while True:
                room = (BATCHES_AHEAD + 1) * batch_size - len(ahead)
                for source in itertools.islice(remaining, room):
                    names.append(name_of(source))
                    ahead.append(pool.submit(self.read, source, names[-1]))
                if not ahead:
                    return
                batch = ImageBatch([], [], {})
                for position in range(min(batch_size, len(ahead))):
                    batch.names.append(names.popleft())
                    try:
                        batch.inputs.append(ahead.popleft().result())
                    except (DataError, ResourceError) as error:
                        batch.errors[position] = error
                yield batch
        finally:  # also where the caller stops early
            pool.shutdown(cancel_futures=True)

    def logits(self, sources: Iterable[ImageSource], batch_size: int = 32) -> Tensor:
        """Logits (N, classes) of readable images, before the temperature."""
        return self.predictions(sources, batch_size).logits

    def predictions(self, sources: Iterable[ImageSource], batch_size: int = 32) -> Predictions:
        """Logits (N, classes) and features (N, D) of readable images; the labels are 0.

        Raises:
            DataError, ResourceError: an image cannot be read.
            UsageError: there is none.
        """
        found = []
        for batch in self.read_batches(sources, batch_size):
            for error in batch.errors.values():
                raise error
            found.append(self._collect(batch.inputs))
        if not found:
            raise UsageError("there are no images", "give one or more")
        logits, labels, features = (
            torch.cat([getattr(each, name) for each in found]) for name in ("logits", "labels", "features")
        )
        return Predictions(logits, labels, features)

    def threshold(self, max_error: float) -> Threshold:
        """The confidence threshold whose error rate on new photos is at most `max_error`, on average.

        Raises:
            UsageError: the weights file has no risk-coverage curve, or no threshold has so low an error rate.
        """
        return choose_threshold(read_curve(self.info.selective), max_error)

    def set_threshold(self, coverage: float) -> float:
        """The probability from which a class belongs to the set that contains the true one in `coverage` of cases.

        Raises:
            UsageError: the weights file has no prediction sets, or too few validation photos made them.
        """
        return set_threshold(self.info.selective.get("sets") or {}, coverage)

    def predict(
        self,
        sources: Iterable[ImageSource],
        top: int = 3,
        batch_size: int = 32,
        confidence_threshold: float = 0.0,
        set_threshold: float | None = None,
    ) -> Iterator[Prediction]:
        """Yields a prediction for each image in order; for an unreadable one, a prediction with its error.

        Each prediction has the `top` most probable classes; below the threshold of confidence the model abstains.
        With a threshold of the sets, it has a set too.
        """
        for batch in self.read_batches(sources, batch_size):
            predictions = iter(self.classify(batch.inputs, top, confidence_threshold, set_threshold))
            for position, name in enumerate(batch.names):
                if error := batch.errors.get(position):
                    yield Prediction(name, error=str(error))
                else:
                    yield dataclasses.replace(next(predictions), file=name)

    def classify(
        self,
        inputs: Sequence[Tensor],
        top: int = 3,
        confidence_threshold: float = 0.0,
        set_threshold: float | None = None,
    ) -> list[Prediction]:
        """Like `predict`, for preprocessed images without file names, in one forward pass."""
        if not inputs:
            return []
        predictions = self._collect(inputs)
        probabilities = (predictions.logits / self.info.temperature).softmax(1)
        best = probabilities.topk(min(top, probabilities.shape[1]))
        is_ood = [False] * len(inputs)
        if self.ood_detector is not None:
            is_ood = (self.ood_detector.distance(predictions.features) > self.ood_detector.threshold).tolist()
        sets = [[] for _ in inputs] if set_threshold is None else prediction_sets(probabilities, set_threshold)
        found, classes = [], self.info.classes
        for indices, values, ood, own in zip(best.indices.tolist(), best.values.tolist(), is_ood, sets, strict=True):
            low = LOW_CONFIDENCE if values[0] < confidence_threshold else ""
            names, members = (tuple(classes[i] for i in some) for some in (indices, own))
            found.append(Prediction("", names, tuple(values), OUT_OF_DISTRIBUTION if ood else low, set=members))
        return found

    def explain(self, source: ImageSource) -> Image.Image:
        """The network's view of an image with the Grad-CAM heatmap of the predicted class.

        Raises:
            DataError, UsageError: the image cannot be read, or the network has no spatial feature map.
        """
        return self.explain_inputs([self.read(source)])[0]

    def explain_inputs(self, inputs: Sequence[Tensor]) -> list[Image.Image]:
        """Like `explain`, for preprocessed images."""
        from flowers_torch.evaluation.gradcam import grad_cam, input_to_image, overlay

        heat = grad_cam(self.network, self.runtime.images(torch.stack(list(inputs))))
        mean, std = self.info.preprocessing.mean, self.info.preprocessing.std
        return [overlay(input_to_image(x, mean, std), h) for x, h in zip(inputs, heat, strict=True)]

    def _collect(self, inputs: Sequence[Tensor]) -> Predictions:
        batch = torch.stack(list(inputs)), torch.zeros(len(inputs), dtype=torch.long)
        return collect(self.inference_network, [batch], self.runtime)
