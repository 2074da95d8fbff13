"""What each of several processes computes for a command: predictions or features of its shard of the photos."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from torch import nn

from flowers_torch.accelerate import AUTO, Acceleration
from flowers_torch.data.preprocessing import Preprocessing
from flowers_torch.data.spread import Spread
from flowers_torch.data.value_range import Range
from flowers_torch.deploy.features import image_features, open_network
from flowers_torch.deploy.inputs import ImageSource
from flowers_torch.deploy.predictor import Prediction, Predictor
from flowers_torch.training.device import choose_runtime
from flowers_torch.training.distributed import device_of_process

BATCHES = 64  # that are spread at a time


@dataclasses.dataclass(frozen=True)
class PredictionJob:
    """How `Predictor.predict` is called, in plain values that another process can be sent."""

    model: Path
    device: str
    precision: str
    top: int
    batch_size: int
    confidence: float
    set_threshold: float | None
    acceleration: Acceleration = AUTO

    def predict(self, sources: Sequence[ImageSource]) -> list[Prediction]:
        """Predictions of some sources, in this process."""
        predictor = _load(self.model, self.device, self.precision, self.acceleration)
        return list(predictor.predict(sources, self.top, self.batch_size, self.confidence, self.set_threshold))

    def spread(self, sources: Sequence[ImageSource], spread: Spread) -> Iterator[Prediction]:
        """Predictions of all sources in their order. Each process gets whole batches, as one process would make."""
        for start in range(0, len(sources), BATCHES * self.batch_size):
            yield from spread(self.predict, sources[start : start + BATCHES * self.batch_size], self.batch_size)


@functools.lru_cache(maxsize=1)
def _load(model: Path, device: str, precision: str, acceleration: Acceleration) -> Predictor:
    return Predictor.load(model, choose_runtime(device_of_process(device), precision), acceleration)


@dataclasses.dataclass(frozen=True)
class FeatureJob:
    """How `image_features` is called, in plain values; the range is used unless the model has one."""

    name: str
    weights: str
    value_range: Range

    def describe(self) -> str:
        """What was loaded."""
        return _open(self.name, self.weights)[2]

    def rows(self, paths: Sequence[Path]) -> list[np.ndarray]:
        """The features of some images, in this process."""
        if not paths:
            return []
        model, preprocessing, _ = _open(self.name, self.weights)
        value_range = preprocessing.value_range or self.value_range
        preprocessing = dataclasses.replace(preprocessing, value_range=value_range)
        runtime = choose_runtime(device_of_process("auto"), "fp32")
        return list(image_features(model, preprocessing, paths, runtime).numpy())


@functools.lru_cache(maxsize=1)
def _open(name: str, weights: str) -> tuple[nn.Module, Preprocessing, str]:
    return open_network(name, weights)
