"""A trained classifier in the formats of other programs; a file gets its name once it has been checked."""

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
from flowers_torch.deploy.onnx_file import attach, describe, parse_onnx, relabel, to_onnx, trace
from flowers_torch.deploy.parity import compare, require
from flowers_torch.deploy.quantize import cost, quantize, reader, require_accuracy
from flowers_torch.errors import printable
from flowers_torch.files.atomic import atomic_write
from flowers_torch.models.checkpoint import ModelInfo, load_classifier, save_classifier

METADATA_FILE = "flowers_torch.json"  # inside a .pt2


@dataclasses.dataclass(frozen=True)
class Trial:
    """Photos that an export is tried on.

    Attributes:
        photos: Upright RGB, `parity.PHOTOS` of them.
        told: What they are, for a line of text.
        calibration: Files of training photos, for eight bits.
        validation: Files of validation photos, to measure what eight bits cost.
        labels: Of the validation photos.
    """

    photos: Sequence[Image.Image]
    told: str
    calibration: Sequence[Path] = ()
    validation: Sequence[Path] = ()
    labels: Sequence[int] = ()


@dataclasses.dataclass(frozen=True)
class Made:
    """A checked model, not yet written: its bytes, and lines that tell about it."""

    content: bytes
    lines: list[str]

    def write(self, path: Path) -> list[str]:
        """Writes the file and returns all lines."""
        with atomic_write(path, size=len(self.content)) as file:
            file.write(self.content)
        return [f"export   {printable(path)}, {megabytes(len(self.content))}", *self.lines]


def make_onnx(
    network: nn.Module,
    info: ModelInfo,
    trial: Trial,
    path: Path,
    photos: bool = False,
    int8: bool = False,
    most_lost: float = 0.02,
) -> Made:
    """An .onnx file, compared with the network.

    Args:
        network: In inference mode, on the CPU.
        record: Of the network.
        trial: With files of photos where `int8` is wanted.
        path: What the file will be called, for errors.
        photos: Whether the graph prepares photos.
        int8: Quantise it.
        most_lost: Share of validation photos that the quantised model may name wrong more than before.

    Raises:
        UsageError: a package is missing.
        ExportError: it does not compute what the network does, or eight bits cost too much.
    """
    answers = ExportableClassifier(network, info, photos).eval()
    metadata = describe(info, photos)
    content = to_onnx(answers, metadata)
    parity = compare(answers, parse_onnx(content, path), trial.photos)
    require(parity, path)  # guard: E02 export
    metadata["check"] = dataclasses.asdict(parity)
    lines = [f"check    {trial.told}: {parity.describe()}"]
    if not int8:
        return Made(relabel(content, metadata), lines)
    read = reader(photos, info.preprocessing)
    small = quantize(content, map(read, trial.calibration))
    before, after = parse_onnx(content, path), parse_onnx(attach(small, metadata), path)
    told = cost(before, after, trial.validation, trial.labels, info.preprocessing)
    require_accuracy(told, most_lost, path)
    metadata["int8"] = dataclasses.asdict(told)
    lines.append(f"int8     {told.describe()}; {megabytes(len(content))} before")
    return Made(attach(small, metadata), lines)


def make_program(network: nn.Module, info: ModelInfo, trial: Trial, path: Path, photos: bool = False) -> Made:
    """A .pt2 file for `torch.export.load`, compared with the network; arguments as `make_onnx`."""
    answers = ExportableClassifier(network, info, photos).eval()
    metadata = describe(info, photos)
    file = io.BytesIO()
    torch.export.save(trace(answers), file, extra_files={METADATA_FILE: json.dumps(metadata)})
    file.seek(0)
    program = torch.export.load(file).module()
    parity = compare(answers, lambda x: _run(answers, program, x), trial.photos)
    require(parity, path)
    return Made(file.getvalue(), [f"check    {trial.told}: {parity.describe()}"])


def make_weights(network: nn.Module, info: ModelInfo, trial: Trial, path: Path) -> Made:
    """Weights and record as one .safetensors file, read back and compared; arguments as `make_onnx`."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.safetensors"
        save_classifier(network.state_dict(), info, file)
        copy, again = load_classifier(file)
        content = file.read_bytes()
    answers = ExportableClassifier(copy, again)
    parity = compare(ExportableClassifier(network, info), lambda x: _run(answers, answers, x), trial.photos)
    require(parity, path)
    return Made(content, [f"check    {trial.told}: {parity.describe()}"])


def _run(
    answers: ExportableClassifier, module: nn.Module, inputs: NDArray[Any]
) -> dict[str, NDArray[np.float32]]:
    with torch.inference_mode():
        outputs = module(torch.from_numpy(inputs))
    return {name: value.numpy() for name, value in zip(answers.outputs, outputs, strict=True)}


def megabytes(count: int) -> str:
    """A number of bytes as people say it."""
    return f"{count / 1e6:.1f} MB"
