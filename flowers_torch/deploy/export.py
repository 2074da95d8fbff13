"""Export of a trained classifier to other formats; each file is verified before it is written."""

import dataclasses
import io
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from flowers_torch.deploy.graph import ExportableClassifier
from flowers_torch.deploy.onnx_file import attach_metadata, export_metadata, parse_onnx, to_onnx, trace
from flowers_torch.deploy.parity import Exported, Parity, compare, require_parity
from flowers_torch.deploy.quantize import measure_loss, model_input, quantize, require_accuracy
from flowers_torch.errors import printable
from flowers_torch.files.atomic import atomic_write
from flowers_torch.models.checkpoint import ModelInfo, load_classifier, save_classifier

METADATA_FILE = "flowers_torch.json"  # inside a .pt2 file


@dataclasses.dataclass(frozen=True)
class VerificationData:
    """Images on which an export is verified; int8 needs the files."""

    images: Sequence[Image.Image]  # upright RGB, `parity.PARITY_IMAGES` of them
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


def export_onnx(
    network: nn.Module,
    info: ModelInfo,
    data: VerificationData,
    path: Path,
    with_preprocessing: bool = False,
    int8_max_loss: float | None = None,
) -> VerifiedExport:
    """An .onnx file, verified against the network.

    Args:
        network: Network in inference mode, on the CPU.
        info: Its metadata.
        data: Images to verify with.
        path: For error messages.
        with_preprocessing: Include the preprocessing in the graph.
        int8_max_loss: Largest drop of the validation accuracy by quantization to int8; float32 if None.

    Raises:
        UsageError: a package is missing.
        ExportError: the file does not compute what the network does, or int8 loses too much accuracy.
    """
    exportable = ExportableClassifier(network, info, with_preprocessing).eval()
    metadata = export_metadata(info, with_preprocessing)
    content = to_onnx(exportable, metadata)
    model = parse_onnx(content, path)
    parity, lines = _verify(exportable, model, data, path)
    metadata["parity"] = dataclasses.asdict(parity)
    if int8_max_loss is not None:
        read = model_input(with_preprocessing, info.preprocessing)
        quantized = attach_metadata(quantize(content, map(read, data.calibration)), metadata)
        int8 = parse_onnx(quantized, path)
        loss = measure_loss(model, int8, data.validation, data.labels, info.preprocessing)
        require_accuracy(loss, int8_max_loss, path)
        metadata["int8"] = dataclasses.asdict(loss)
        lines.append(f"int8     {loss.describe()}; {megabytes(len(content))} before")
        content = quantized
    return VerifiedExport(attach_metadata(content, metadata), lines)


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
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.safetensors"
        save_classifier(network.state_dict(), info, file)
        loaded = ExportableClassifier(*load_classifier(file))
        content = file.read_bytes()
    exportable = ExportableClassifier(network, info)
    _, lines = _verify(exportable, lambda x: _run(loaded, loaded, x), data, path)
    return VerifiedExport(content, lines)


def _verify(
    exportable: ExportableClassifier, exported: Exported, data: VerificationData, path: Path
) -> tuple[Parity, list[str]]:
    parity = compare(exportable, exported, data.images)
    require_parity(parity, path)  # guard: E02 export
    return parity, [f"check    {data.description}: {parity.describe()}"]


def _run(exportable: ExportableClassifier, module: nn.Module, inputs: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
    with torch.inference_mode():
        outputs = module(torch.from_numpy(inputs))
    return {name: value.numpy() for name, value in zip(exportable.outputs, outputs, strict=True)}


def megabytes(count: int) -> str:
    """A number of bytes in megabytes."""
    return f"{count / 1e6:.1f} MB"
