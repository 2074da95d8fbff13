"""`Classifier`: everything that a trained model does, in one object."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from torch import Tensor, nn

from flowers_torch.api.arguments import for_python
from flowers_torch.deploy.inputs import each_image, is_single, name_of
from flowers_torch.deploy.predictor import Prediction, Predictor
from flowers_torch.errors import UsageError, plural, printable
from flowers_torch.files.system import expand_home
from flowers_torch.models.checkpoint import ModelInfo, save_classifier
from flowers_torch.models.own import register_module
from flowers_torch.runs.folder import find_run
from flowers_torch.training.device import choose_runtime

if TYPE_CHECKING:
    from flowers_torch.runs.evaluate import Evaluation


class Classifier:
    """A trained classifier. Many threads may use one: nothing about it changes after its construction.

        classifier = Classifier.load("latest")
        prediction = classifier("rose.jpg")
        print(prediction.label, prediction.probability)

    An image is a path, an http(s) URL, the bytes of a file, an open file, a Pillow image, an array (H, W), (H, W, 3)
    or (H, W, 4), or a tensor (H, W) or (3, H, W), in RGB, of uint8 or of floats in 0..1. Several images are a list,
    a generator, a batch (N, ...), a folder, or a glob. Photos of phones are turned upright.

    Attributes:
        network: The network, from (N, 3, size, size) to logits (N, classes), in inference mode on its device.
        info: Its metadata: `classes`, `preprocessing`, `temperature` and more.
        path: The run folder or the file that it was loaded from.
    """

    def __init__(self, predictor: Predictor, path: Path) -> None:
        self.predictor, self.path = predictor, path

    @classmethod
    @for_python
    def load(
        cls, run: str | Path, device: str = "auto", precision: str = "fp32", network: nn.Module | None = None
    ) -> "Classifier":
        """Loads a trained classifier.

        Args:
            run: A run folder, its `model.safetensors`, its name below `runs/`, or `latest`.
            device: auto, cpu, cuda, cuda:1 or mps.
            precision: fp32, bf16, fp16, or auto.
            network: A module of the class that was trained, where that was one of your own.

        Raises:
            UsageError: there is no such run or device.
            ModelFileError: the file is missing, damaged, or not one of this package.
        """
        if network is not None:
            register_module(network)
        path = find_run(run)
        return cls(Predictor.load(path, choose_runtime(device, precision)), path)

    @property
    def network(self) -> nn.Module:
        return self.predictor.network

    @property
    def info(self) -> ModelInfo:
        return self.predictor.info

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the logits."""
        return self.info.classes

    def __repr__(self) -> str:
        names = ", ".join(printable(name, 20) for name in self.classes[:4]) + (", ..." if self.classes[4:] else "")
        inputs = f"{self.info.preprocessing.size} px on {self.predictor.runtime.device}"
        what = f"{printable(self.info.arch)}, {plural(self.classes, 'class')} ({names}), {inputs}"
        return f"Classifier({what}, from {printable(self.path)})"

    def __call__(self, images: Any, **options: Any) -> Any:
        """`predict`."""
        return self.predict(images, **options)

    @for_python
    def predict(
        self,
        images: Any,
        top: int = 3,
        max_error: float | None = None,
        coverage: float | None = None,
        batch_size: int = 32,
    ) -> Any:
        """Classifies one image or several.

        Args:
            top: Number of the most probable classes in a prediction.
            max_error: Largest error rate on new images, such as 0.02; the model abstains from the rest, and their
                predictions have a `reason`.
            coverage: How often a prediction's `set` of classes contains the true one on new images, such as 0.95.
            batch_size: Images in a forward pass.

        Returns:
            For one image its `Prediction`: `label`, `probability`, `classes`, `probabilities`, `abstained`, `reason`.
            For several images a list of these, in order; one that cannot be read costs only itself and has an `error`.

        Raises:
            DataError, ResourceError: the one image cannot be read, or its URL cannot be fetched.
            UsageError: there are no images, or no threshold has so low an error rate.
        """
        if not is_single(images):
            return list(self.stream(images, top, max_error, coverage, batch_size))
        thresholds = self._thresholds(top, max_error, coverage)
        (found,) = self.predictor.classify([self.predictor.read(images)], top, *thresholds)
        return dataclasses.replace(found, file=name_of(images))

    @for_python
    def stream(
        self,
        images: Any,
        top: int = 3,
        max_error: float | None = None,
        coverage: float | None = None,
        batch_size: int = 32,
    ) -> Iterator[Prediction]:
        """Like `predict`, for as many images as there are: yields their predictions and keeps none in memory.

        Threads read the next images while the network computes.
        """
        if batch_size < 1:
            raise UsageError(f"--batch-size {batch_size} is not valid: expected 1 or more", "use --batch-size 32")
        thresholds = self._thresholds(top, max_error, coverage)
        return self.predictor.predict(self._sources(images), top, batch_size, *thresholds)

    @for_python
    def predict_proba(self, images: Any, batch_size: int = 32) -> Tensor:
        """Calibrated probabilities (N, classes) of several images, or (classes,) of one.

        Raises:
            DataError, ResourceError: an image cannot be read.
        """
        logits = self.predictor.predictions(self._sources(images), batch_size).logits
        probabilities = (logits / self.info.temperature).softmax(1)
        return probabilities[0] if is_single(images) else probabilities

    @for_python
    def embed(self, images: Any, batch_size: int = 32) -> Tensor:
        """Features (N, D) of several images, or (D,) of one: what enters the last layer, on the CPU.

        Raises:
            DataError, ResourceError: an image cannot be read.
        """
        features = self.predictor.predictions(self._sources(images), batch_size).features
        return features[0] if is_single(images) else features

    @for_python
    def explain(self, image: Any) -> Image.Image:
        """The network's view of an image with the Grad-CAM heatmap of the predicted class.

        Raises:
            DataError, UsageError: the image cannot be read, or the network has no spatial feature map.
        """
        return self.predictor.explain(image)

    @for_python
    def evaluate(
        self, data: Any = None, split: str = "", views: str = "none", batch_size: int = 32, *,
        classes: str = "", moved: str = "",
    ) -> "Evaluation":  # fmt: skip
        """Scores on labeled images.

        Args:
            data: As of `train`; the images of its own run if None. Their classes have the names of the model's.
            split: train, val or test; if empty, the test images of the run, or all images of `data`.
            views: Test-time augmentation: none, auto (on its own run), flip, scales, crop5 or crop10.
            classes: What names the classes of a folder: top, leaf, path or name.
            moved: Where the images of the run are now, if they have moved.

        Returns:
            The `accuracy` with its 95% `interval`, all `scores`, and a row for each image.

        Raises:
            UsageError: a weights file without its run has no test images.
            DataError: a class that the model does not know, or no images of the split.
        """
        from flowers_torch.runs.dataset import open_other  # with all that a run needs
        from flowers_torch.runs.evaluate import evaluate_data, evaluate_run

        if data is None:
            if not self.path.is_dir():
                raise UsageError("a weights file has no test photos", "name labeled photos after it")
            device = str(self.predictor.runtime.device)
            return evaluate_run(self.path, split or "test", views, moved, device, batch_size)
        if isinstance(data, str | Path):
            dataset = open_other(self.path, str(data), classes)
        else:
            from flowers_torch.data.sources.open import open_dataset
            from flowers_torch.data.sources.python_data import write_dataset
            from flowers_torch.files.cache import cache_folder

            dataset = open_dataset(write_dataset(data, cache_folder()))
        return evaluate_data(self.predictor, self.path, dataset, split, views, batch_size)

    @for_python
    def export(self, format: str = "onnx", path: str | Path = "", **options: Any) -> Path:
        """Writes the model for other programs, after a comparison with the network on photos of its run.

        Args:
            format: onnx, torch-export, safetensors or page (a web page that works offline).
            path: File to write; empty for one in `exported/` beside the weights.
            options: The fields of `runs.export.ExportOptions`, such as `with_preprocessing=True` or `int8=True`.

        Returns:
            The file, or the folder of a large page.

        Raises:
            UsageError: the format or an option is not valid, or a package is missing.
            ExportError: the file would not compute what the network does; nothing is written.
        """
        from flowers_torch.runs.export import ExportOptions, export  # imports torch.export, which takes a second

        unknown = sorted(options.keys() - ExportOptions.__dataclass_fields__.keys())
        if unknown:
            fix = f"use {', '.join(ExportOptions.__dataclass_fields__)}"
            raise UsageError(f"{unknown[0]} is not an option of export", fix)
        return export(self.path, format, Path(path) if path else None, ExportOptions(**options))

    @for_python
    def save(self, path: str | Path) -> Path:
        """Writes the weights with all metadata into one .safetensors file, which `load` and the commands take.

        Raises:
            ResourceError: it cannot be written.
        """
        path = expand_home(path)
        state = {name: value.detach().cpu().contiguous() for name, value in self.network.state_dict().items()}
        save_classifier(state, self.info, path)
        return path

    def _sources(self, images: Any) -> Any:
        return [images] if is_single(images) else each_image(images)

    def _thresholds(self, top: int, max_error: float | None, coverage: float | None) -> tuple[float, float | None]:
        """Of the confidence and of the sets."""
        if top < 1:
            raise UsageError(f"--top {top} is not valid: expected 1 or more", "use --top 1")
        if max_error is not None and not 0 <= max_error < 1:
            raise UsageError(f"--max-error {max_error:g} is not a fraction", "use a value such as --max-error 2%")
        if coverage is not None and not 0 < coverage <= 1:
            raise UsageError(f"--coverage {coverage:g} is not a fraction", "use a value such as --coverage 95%")
        confidence = 0.0 if max_error is None else self.predictor.threshold(max_error).probability
        return confidence, None if coverage is None else self.predictor.set_threshold(coverage)
