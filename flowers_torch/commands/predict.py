"""Classify photos with a trained model."""

import argparse
import csv
import dataclasses
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowers_torch.commands import (
    add_coverage,
    add_device,
    add_json,
    add_max_error,
    add_run,
    check_positive,
    fraction,
    keep_memory,
    print_json,
)
from flowers_torch.errors import DataError, ResourceError, UsageError, plural, printable

if TYPE_CHECKING:
    from flowers_torch.deploy.predictor import Prediction
    from flowers_torch.training.distributed import Distributed

EXAMPLES = """examples:
  flowers-torch predict runs/photos-inception_v3-1 new.jpg --top 3
  flowers-torch predict latest holiday/ --max-error 2% --sort-into sorted/
  flowers-torch predict model.safetensors https://example.org/rose.jpg --json
"""
FEW_IMAGES = 8  # up to which a faster form of the network takes longer to make than it saves


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument("photos", nargs="+", metavar="PHOTO", help="files, folders, globs or URLs")
    parser.add_argument("--top", type=int, default=1, metavar="K", help="classes per photo [1]")
    add_max_error(parser)
    add_coverage(parser)
    parser.add_argument("--sort-into", type=Path, metavar="DIR", help="folder with a subfolder of links for each class")
    text = "folder for images that show where the network looked"
    parser.add_argument("--gradcam", type=Path, metavar="DIR", help=text)
    form = parser.add_mutually_exclusive_group()
    add_json(form)
    form.add_argument("--csv", action="store_true", help="print a CSV table")
    add_device(parser, precision=True)


def run(args: argparse.Namespace) -> int:
    """Prints a prediction for each photo; exit code 3 if some could not be read."""
    check_positive(args, "top", "batch-size")
    for text, flag, example in ((args.max_error, "--max-error", "2%"), (args.coverage, "--coverage", "95%")):
        if text is not None:
            fraction(text, flag, example)

    from flowers_torch.training.distributed import distributed_context

    with distributed_context(args.device) as distributed:  # torchrun starts several processes
        return distributed.lead(lambda: _predict(args, distributed))


def _predict(args: argparse.Namespace, distributed: "Distributed") -> int:
    from flowers_torch.accelerate import AUTO, OFF
    from flowers_torch.api.classifier import Classifier
    from flowers_torch.data.sources.rows import counted
    from flowers_torch.deploy.inputs import find_inputs
    from flowers_torch.deploy.predictor import Predictor
    from flowers_torch.deploy.sort import check_folder, folder_names, sort_into
    from flowers_torch.files.atomic import atomic_write, safe_cell
    from flowers_torch.log import bar
    from flowers_torch.runs.folder import find_run
    from flowers_torch.training.device import choose_runtime

    max_error, coverage = (None if text is None else fraction(text) for text in (args.max_error, args.coverage))
    photos = find_inputs(args.photos)
    if args.sort_into:
        check_folder(args.sort_into, [photo for photo in photos if isinstance(photo, Path)])
    path, acceleration = find_run(args.run), OFF if len(photos) <= FEW_IMAGES else AUTO
    runtime = choose_runtime(distributed.device(args.device), args.precision)
    classifier = Classifier(Predictor.load(path, runtime, acceleration), path)
    keep_memory(classifier.predictor.runtime)
    classes = len(classifier.classes)
    if args.top > classes:
        raise UsageError(f"--top {args.top}: the model has {plural(classes, 'class')}", f"use --top {classes}")
    folders = folder_names(classifier.classes)
    threshold = classifier.predictor.threshold(max_error) if max_error is not None else None
    if threshold:
        print(f"flowers-torch: {threshold.describe()}", file=sys.stderr)
    failed, rows, places = 0, list[dict[str, Any]](), Counter[str]()
    table = csv.writer(sys.stdout, lineterminator="\n")
    if args.csv:
        table.writerow(["file", "rank", "class", "probability", "reason", "error", *(["set"] if coverage else [])])
    with bar("predict", len(photos)) as meter:
        predictions = classifier.stream(photos, args.top, max_error, coverage, args.batch_size)
        if distributed.size > 1:
            from flowers_torch.deploy.shards import PredictionJob

            confidence = threshold.probability if threshold else 0.0
            sets = classifier.predictor.set_threshold(coverage) if coverage is not None else None
            how = (args.top, args.batch_size, confidence, sets, acceleration)
            job = PredictionJob(path, args.device, args.precision, *how)
            predictions = job.spread(photos, distributed.spread)
        for number, (photo, prediction) in enumerate(zip(photos, predictions, strict=True)):
            extra: dict[str, Any] = {}
            if args.sort_into:
                place = sort_into(args.sort_into, prediction, folders)
                places[place.parent.name] += 1
                extra["sorted"] = str(place)
            if args.gradcam and not prediction.error:
                path = args.gradcam / f"{number:04d}-{Path(str(photo)).stem[:80]}.jpg"
                try:
                    heatmap = classifier.explain(photo)
                except (DataError, ResourceError) as error:  # guard: S9 again
                    prediction = dataclasses.replace(prediction, error=str(error))
                else:
                    with atomic_write(path) as file:
                        heatmap.save(file, "JPEG", quality=90)
                    extra["gradcam"] = str(path)
            failed += bool(prediction.error)
            if args.json:
                rows.append(prediction.to_dict() | extra)
            elif args.csv:
                table.writerows([safe_cell(cell) for cell in row] for row in _to_rows(prediction))
            elif prediction.error:
                meter.write(f"flowers-torch: {prediction.error}", file=sys.stderr)
            else:
                meter.write(_to_text(prediction, abstains=max_error is not None), file=sys.stdout)
            meter.update()
    if args.json:
        print_json(rows)
    if args.sort_into:
        print(f"flowers-torch: sorted into {printable(args.sort_into)}: {counted(places)}", file=sys.stderr)
    if failed:
        print(f"flowers-torch: {failed} of {plural(photos, 'photo')} could not be read", file=sys.stderr)
    return DataError.exit_code if failed else 0  # guard: K08


def _to_text(prediction: "Prediction", abstains: bool) -> str:
    pairs = zip(prediction.classes, prediction.probabilities, strict=True)
    text = ", ".join(f"{printable(name, 60)} {p:.3f}" for name, p in pairs)
    if reason := prediction.reason:
        text = f"unsure ({reason}; {text})" if abstains else f"{text} ({reason})"
    if len(prediction.set) > 1:  # a set of one class is the prediction
        text += f"; one of: {', '.join(printable(name, 60) for name in prediction.set)}"
    return f"{printable(prediction.file)}: {text}"


def _to_rows(prediction: "Prediction") -> list[list[object]]:
    if prediction.error:
        return [[prediction.file, "", "", "", "", prediction.error]]
    pairs = enumerate(zip(prediction.classes, prediction.probabilities, strict=True), start=1)
    own = ["; ".join(prediction.set)] if prediction.set else []
    return [[prediction.file, rank, name, f"{p:.6f}", prediction.reason, "", *own] for rank, (name, p) in pairs]
