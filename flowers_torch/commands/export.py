"""Write a trained model for other programs, after a comparison with the network on photos."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from flowers_torch.commands import add_data, add_run, fraction, warn
from flowers_torch.errors import FlowersError, UsageError, printable
from flowers_torch.files.system import expand_home

if TYPE_CHECKING:
    from flowers_torch.deploy.export import VerificationData

SUFFIXES = {"onnx": ".onnx", "torch-export": ".pt2", "safetensors": ".safetensors", "page": ".html"}
EXAMPLES = """examples:
  flowers-torch export runs/photos-inception_v3-1                            an .onnx file
  flowers-torch export runs/photos-inception_v3-1 --with-preprocessing --int8
  flowers-torch export runs/photos-inception_v3-1 --format page              a page to try it in a browser
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    add_data(parser)
    parser.add_argument("--format", default="onnx", metavar="NAME", help=f"{', '.join(SUFFIXES)} [onnx]")
    parser.add_argument("--out", type=Path, metavar="FILE", help="file to write [exported/ beside the weights]")
    parser.add_argument("--with-preprocessing", action="store_true", help="onnx, torch-export: take photos of any size")
    parser.add_argument("--int8", action="store_true", help="onnx, page: eight bits, a quarter of the size")
    parser.add_argument("--max-loss", default="2%", metavar="P", help="accuracy that --int8 may lose [2%%]")
    parser.add_argument("--runtime", default="", metavar="PATH", help="page: onnxruntime-web from npm, folder or .tgz")
    parser.add_argument("--folder", action="store_true", help="page: write a folder even if one file is possible")


def run(args: argparse.Namespace) -> None:
    """Writes the file; exit code 8 and no file if it does not compute what the network computes."""
    if args.format not in SUFFIXES:
        raise UsageError(f"--format {printable(args.format)} is not a valid format", f"use {', '.join(SUFFIXES)}")
    for flag, given, formats in (
        ("--with-preprocessing", args.with_preprocessing, ("onnx", "torch-export")),
        ("--int8", args.int8, ("onnx", "page")),
        ("--runtime", args.runtime, ("page",)),
        ("--folder", args.folder, ("page",)),
    ):
        if given and args.format not in formats:
            raise UsageError(f"{flag} does not apply to --format {args.format}", f"use it with {' or '.join(formats)}")
    max_loss = fraction(args.max_loss, "--max-loss")

    from flowers_torch.deploy import export
    from flowers_torch.deploy.offline_page import find_runtime, write_page
    from flowers_torch.deploy.onnx_file import need
    from flowers_torch.files.atomic import refuse_link
    from flowers_torch.models.checkpoint import load_classifier
    from flowers_torch.runs.folder import find_run

    if args.format in ("onnx", "page"):
        for package in ("onnx", "onnxscript", "onnxruntime"):
            need(package)
    model = find_run(args.run)
    network, info = load_classifier(model)
    name = f"model{'.int8' if args.int8 else ''}{SUFFIXES[args.format]}"
    path = expand_home(args.out or refuse_link((model if model.is_dir() else model.parent) / "exported") / name)
    if path.is_dir() and args.format != "page":
        raise UsageError(f"--out {printable(path)} is a folder", "name a file in it")
    runtime = find_runtime(args.runtime) if args.format == "page" else None  # fails before the slow steps
    verified = (network, info, find_verification_data(model, args.int8, args.moved), path)
    if args.format == "torch-export":
        made = export.export_program(*verified, args.with_preprocessing)
    elif args.format == "safetensors":
        made = export.export_weights(*verified)
    else:
        made = export.export_onnx(*verified, args.with_preprocessing or bool(runtime), max_loss if args.int8 else None)
    lines = [*write_page(path, made.content, runtime, args.folder), *made.lines] if runtime else made.write(path)
    print("\n".join(lines))


def find_verification_data(model: Path, int8: bool = False, data: str = "") -> "VerificationData":
    """Validation photos of a run; drawings if there is no run or its photos are gone."""
    import numpy as np

    from flowers_torch.data.images import load_image
    from flowers_torch.data.sources.demo import FORMS, draw_picture
    from flowers_torch.deploy.export import PARITY_IMAGES, VerificationData
    from flowers_torch.deploy.quantize import CALIBRATION_IMAGES
    from flowers_torch.runs.experiment import Experiment

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
    warn(f"compared on drawings: {reason}")
    forms, seeds = list(FORMS), range(PARITY_IMAGES)
    drawings = [draw_picture(forms[i % len(forms)], 160 + 8 * i, np.random.default_rng([0, i])) for i in seeds]
    return VerificationData(drawings, "drawings")
