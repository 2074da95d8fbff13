"""Export of a trained classifier to other formats; each file is verified before it is written."""

import dataclasses
import io
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from flowers_torch.data.augment.per_image import eval_transform
from flowers_torch.data.images import load_image
from flowers_torch.deploy.graph import ExportableClassifier
from flowers_torch.deploy.onnx_file import attach_metadata, export_metadata, parse_onnx, to_onnx, trace
from flowers_torch.deploy.quantize import QuantizationLoss, outputs_of, quantize, refit, require_accuracy
from flowers_torch.errors import ExportError, plural, printable
from flowers_torch.evaluation.metrics import score
from flowers_torch.files.atomic import atomic_write, temporary_folder
from flowers_torch.models.checkpoint import ModelInfo, load_classifier, save_classifier

METADATA_FILE = "flowers_torch.json"  # inside a .pt2 file
BATCHES = (1, 2, 17)
PARITY_IMAGES = sum(BATCHES)
# Largest allowed difference of the logits, relative to the largest logit.
TOLERANCE = 1e-4  # other kernels, other order of summation
PREPROCESSING_TOLERANCE = 0.01  # resizing in the graph differs from Pillow's by a gray level

Exported = Callable[[NDArray[Any]], dict[str, NDArray[np.float32]]]


@dataclasses.dataclass(frozen=True)
class VerificationData:
    """Images on which an export is verified; int8 needs the files."""

    images: Sequence[Image.Image]  # upright RGB, `PARITY_IMAGES` of them
    description: str  # of the images, for a printed line
    calibration: Sequence[Path] = ()  # training files, for the scales of the activations
    validation: Sequence[Path] = ()  # files to measure the accuracy of int8
    labels: Sequence[int] = ()  # of the validation files


@dataclasses.dataclass(frozen=True)
class VerifiedExport:
    """The bytes of a verified model and lines that describe it."""

    content: bytes
    lines: list[str]

    def write(self, path: Path) -> list[str]:
        """Writes the file and returns all lines."""
        with atomic_write(path, size=len(self.content)) as file:
            file.write(self.content)
        return [f"export   {printable(path)}, {megabytes(len(self.content))}", *self.lines]


@dataclasses.dataclass(frozen=True)
class Parity:
    """Largest differences between an exported model and the network."""

    logits: float
    probabilities: float
    largest: float  # largest absolute logit
    images: int
    tolerance: float  # allowed difference of the logits, relative to `largest`

    @property
    def holds(self) -> bool:
        """Whether the difference is within the tolerance; False for NaN."""
        return self.logits <= self.tolerance * self.largest  # guard: E02 worst

    def describe(self) -> str:
        """One line."""
        batches = ", ".join(map(str, BATCHES))
        return (
            f"{plural(self.images, 'photo')} in batches of {batches}: logits up to {self.largest:.3g} "
            f"differ by at most {self.logits:.2g}, probabilities by {self.probabilities:.2g}"
        )


def export_onnx(
    network: nn.Module,
    info: ModelInfo,
    data: VerificationData,
    path: Path,
    with_preprocessing: bool = False,
    int8_max_loss: float | None = None,
) -> VerifiedExport:
    """An .onnx file, verified against the network, which is in inference mode on the CPU.

    `int8_max_loss` is the largest drop of the validation accuracy by quantization to int8; None is float32.

    Raises:
        UsageError: a package is missing.
        ExportError: the file does not compute what the network does, or int8 loses too much accuracy.
    """
    exportable = ExportableClassifier(network, info, with_preprocessing).eval()
    metadata = export_metadata(info, with_preprocessing)
    content = to_onnx(exportable, metadata)
    model = parse_onnx(content, path)
    parity, lines = _verify(exportable, model, data, path)
    if int8_max_loss is None:
        return VerifiedExport(attach_metadata(content, metadata | {"parity": dataclasses.asdict(parity)}), lines)
    quantized, loss = _to_int8(exportable, info, content, data, path, int8_max_loss)
    before = megabytes(len(content))
    return VerifiedExport(
        quantized, [f"float32  {lines[0].partition('  ')[2].strip()}", f"int8     {loss}; {before} before"]
    )


def _to_int8(
    exportable: ExportableClassifier,
    info: ModelInfo,
    content: bytes,
    data: VerificationData,
    path: Path,
    max_loss: float,
) -> tuple[bytes, str]:
    """The int8 file of an .onnx file, with everything fitted again that depends on its outputs, and what it loses."""

    def inputs(files: Sequence[Path]) -> Iterator[NDArray[Any]]:
        value_range = info.preprocessing.value_range
        return (exportable.to_input(load_image(file, value_range=value_range)) for file in files)

    def outputs(file: bytes) -> dict[str, NDArray[np.float32]]:
        return outputs_of(parse_onnx(file, path), inputs(data.validation))

    metadata = export_metadata(info, exportable.with_preprocessing)
    before = outputs(content)
    first = outputs(attach_metadata(quantize(content, inputs(data.calibration)), metadata))
    require_accuracy(QuantizationLoss.of(before["logits"], first["logits"], data.labels), max_loss, path)
    refitted = refit(info, first, data.labels)
    # The temperature is a constant of the graph; logits do not depend on it.
    again = ExportableClassifier(exportable.network, refitted, exportable.with_preprocessing).eval()
    metadata = export_metadata(refitted, exportable.with_preprocessing)
    quantized = attach_metadata(quantize(to_onnx(again, metadata), inputs(data.calibration)), metadata)
    after = outputs(quantized)
    loss = QuantizationLoss.of(before["logits"], after["logits"], data.labels)
    require_accuracy(loss, max_loss, path)
    probability = float(np.abs(after["probabilities"] - before["probabilities"]).max())
    error = score(torch.from_numpy(after["probabilities"]).log(), torch.tensor(data.labels)).calibration_error
    metadata["int8"] = dataclasses.asdict(loss) | {"probabilities": probability, "calibration_error": error}
    said = f"{loss.describe()}; probabilities differ by up to {probability:.2g}, and are off by {error:.3f} on average"
    return attach_metadata(quantized, metadata), said


def export_program(
    network: nn.Module, info: ModelInfo, data: VerificationData, path: Path, with_preprocessing: bool = False
) -> VerifiedExport:
    """A .pt2 file for `torch.export.load`; arguments as in `export_onnx`."""
    exportable = ExportableClassifier(network, info, with_preprocessing).eval()
    metadata = json.dumps(export_metadata(info, with_preprocessing))
    file = io.BytesIO()
    torch.export.save(trace(exportable), file, extra_files={METADATA_FILE: metadata})
    file.seek(0)
    program = torch.export.load(file).module()
    _, lines = _verify(exportable, lambda x: _run(exportable, program, x), data, path)
    return VerifiedExport(file.getvalue(), lines)


def export_weights(network: nn.Module, info: ModelInfo, data: VerificationData, path: Path) -> VerifiedExport:
    """A .safetensors file with weights and metadata; arguments as in `export_onnx`."""
    with temporary_folder() as folder:
        file = folder / "model.safetensors"
        save_classifier(network.state_dict(), info, file)
        loaded = ExportableClassifier(*load_classifier(file))
        content = file.read_bytes()
    _, lines = _verify(ExportableClassifier(network, info), lambda x: _run(loaded, loaded, x), data, path)
    return VerifiedExport(content, lines)


def compare(model: ExportableClassifier, exported: Exported, images: Sequence[Image.Image]) -> Parity:
    """Compares an exported model with the network behind the evaluation transform, on `PARITY_IMAGES` RGB images.

    A model with preprocessing takes images of equal size, so the images of its batches are cropped.
    """
    transform = eval_transform(**model.preprocessing.transform_options())
    differences, largest = [], 0.0
    rest = list(images)
    for count in BATCHES:
        batch, rest = rest[:count], rest[count:]
        if model.with_preprocessing:
            width, height = (min(image.size[side] for image in batch) for side in (0, 1))
            batch = [image.crop((0, 0, width, height)) for image in batch]
        with torch.inference_mode():
            logits = model.network(torch.stack([transform(image) for image in batch]))
        probabilities = (logits / model.temperature).softmax(1)
        outputs = exported(np.concatenate([model.to_input(image) for image in batch]))
        found = (torch.from_numpy(outputs[name]) for name in ("logits", "probabilities"))
        differences.append([(a - b).abs().max() for a, b in zip(found, (logits, probabilities), strict=True)])
        largest = max(largest, float(logits.abs().max()))
    worst, worst_probability = torch.tensor(differences).amax(0).tolist()  # NaN if any is
    tolerance = PREPROCESSING_TOLERANCE if model.with_preprocessing else TOLERANCE
    return Parity(worst, worst_probability, largest, PARITY_IMAGES, tolerance)


def _verify(
    exportable: ExportableClassifier, exported: Exported, data: VerificationData, path: Path
) -> tuple[Parity, list[str]]:
    parity = compare(exportable, exported, data.images)
    if not parity.holds:  # guard: E02 export
        raise ExportError(
            f"{printable(path)} was not written because it would not compute what the network does: "
            f"{parity.describe()}, allowed {parity.tolerance * parity.largest:.2g}",
            "report it with the network's name and the versions of `flowers-torch doctor`",
        )
    return parity, [f"check    {data.description}: {parity.describe()}"]


def _run(exportable: ExportableClassifier, module: nn.Module, inputs: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
    with torch.inference_mode():
        outputs = module(torch.from_numpy(inputs))
    return {name: value.numpy() for name, value in zip(exportable.outputs, outputs, strict=True)}


def megabytes(count: int) -> str:
    """A number of bytes in megabytes."""
    return f"{count / 1e6:.1f} MB"
