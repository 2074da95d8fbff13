"""Export of a run's model, compared with the network on the validation images of the run."""

import dataclasses
from pathlib import Path

import numpy as np

from flowers_torch.data.images import load_image
from flowers_torch.data.sources.demo import FORMS, draw_picture
from flowers_torch.deploy import export as formats
from flowers_torch.deploy.export import PARITY_IMAGES, VerificationData
from flowers_torch.deploy.offline_page import find_runtime, write_page
from flowers_torch.deploy.onnx_file import need
from flowers_torch.deploy.quantize import CALIBRATION_IMAGES
from flowers_torch.errors import FlowersError, UsageError, printable
from flowers_torch.files.atomic import refuse_link
from flowers_torch.files.system import expand_home
from flowers_torch.log import log
from flowers_torch.models.checkpoint import load_classifier
from flowers_torch.runs.experiment import Experiment

SUFFIXES = {"onnx": ".onnx", "torch-export": ".pt2", "safetensors": ".safetensors", "page": ".html"}


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """Options of an export."""

    with_preprocessing: bool = False  # onnx, torch-export: take photos of any size
    int8: bool = False  # onnx, page: eight bits, a quarter of the size
    max_loss: float = 0.02  # accuracy that int8 may lose
    runtime: str = ""  # page: onnxruntime-web from npm, folder or .tgz; empty: downloaded once
    as_folder: bool = False  # page: write a folder even if one file is possible
    data: str = ""  # where the photos of the run are now, if they have moved

    def check(self, format: str) -> None:
        """Raises UsageError for a format that is unknown, or that has not one of these options."""
        if format not in SUFFIXES:
            raise UsageError(f"--format {printable(format)} is not a valid format", f"use {', '.join(SUFFIXES)}")
        for flag, given, allowed in (
            ("--with-preprocessing", self.with_preprocessing, ("onnx", "torch-export")),
            ("--int8", self.int8, ("onnx", "page")),
            ("--runtime", self.runtime, ("page",)),
            ("--folder", self.as_folder, ("page",)),
        ):
            if given and format not in allowed:
                fix = f"use it with {' or '.join(allowed)}"
                raise UsageError(f"{flag} does not apply to --format {format}", fix)


def export(model: Path, format: str, path: Path | None, options: ExportOptions) -> Path:
    """Writes the model of a run folder or weights file, logs what was compared, and returns the path.

    Args:
        format: Key of `SUFFIXES`.
        path: File to write; None for one in `exported/` beside the weights.

    Raises:
        UsageError: the options do not fit, or a package is missing.
        ExportError: the file would not compute what the network computes; nothing is written.
    """
    options.check(format)
    if format in ("onnx", "page"):
        for package in ("onnx", "onnxscript", "onnxruntime"):
            need(package)
    name = f"model{'.int8' if options.int8 else ''}{SUFFIXES[format]}"
    path = expand_home(path or refuse_link((model if model.is_dir() else model.parent) / "exported") / name)
    if path.is_dir() and format != "page":
        raise UsageError(f"--out {printable(path)} is a folder", "name a file in it")
    runtime = find_runtime(options.runtime) if format == "page" else None  # fails before the slow steps
    network, info = load_classifier(model)  # a network of its own: others may be predicting with theirs
    verified = (network, info, find_verification_data(model, options.int8, options.data), path)
    if format == "torch-export":
        made = formats.export_program(*verified, options.with_preprocessing)
    elif format == "safetensors":
        made = formats.export_weights(*verified)
    else:
        loss = options.max_loss if options.int8 else None
        made = formats.export_onnx(*verified, options.with_preprocessing or bool(runtime), loss)
    lines = made.lines
    if runtime:
        lines = [*write_page(path, made.content, runtime, options.as_folder), *lines]
        path = path if path.is_file() and not options.as_folder else path.with_suffix("")
    else:
        lines = made.write(path)
    log.info("\n".join(lines))
    return path


def find_verification_data(model: Path, int8: bool = False, data: str = "") -> VerificationData:
    """Validation images of a run; drawings if there is no run or its images are gone."""
    reason = "a weights file alone has no photos"
    if model.is_dir():
        try:
            opened, _ = Experiment.open(model, "cpu", data)
        except FlowersError as error:
            reason = str(error)
        else:
            dataset, train, val = opened.dataset, opened.splits["train"], opened.splits["val"]
            files = [dataset.root / name for name in dataset.paths]
            chosen = (files[val[i * len(val) // PARITY_IMAGES]] for i in range(PARITY_IMAGES))
            value_range = opened.info.preprocessing.value_range
            images = [load_image(file, value_range=value_range) for file in chosen]
            calibration = [files[i] for i in train[:: max(1, len(train) // CALIBRATION_IMAGES)][:CALIBRATION_IMAGES]]
            labels = [dataset.labels[i] for i in val]
            return VerificationData(images, "validation photos", calibration, [files[i] for i in val], labels)
    if int8:
        raise UsageError(f"--int8 needs photos of the run: {reason}", "leave out --int8")
    log.warning(f"WARNING  compared on drawings: {reason}")
    forms, seeds = list(FORMS), range(PARITY_IMAGES)
    drawings = [draw_picture(forms[i % len(forms)], 160 + 8 * i, np.random.default_rng([0, i])) for i in seeds]
    return VerificationData(drawings, "drawings")
