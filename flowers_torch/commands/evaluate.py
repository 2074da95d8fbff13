"""Measure a trained model on labeled photos: accuracy and more, with 95% intervals."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from flowers_torch.commands import add_data, add_device, add_json, add_run, check_positive, print_json
from flowers_torch.errors import UsageError, printable

if TYPE_CHECKING:
    from flowers_torch.runs.evaluate import Evaluation

EXAMPLES = """examples:
  flowers-torch evaluate runs/photos-inception_v3-1                   its own test photos again
  flowers-torch evaluate runs/photos-inception_v3-1 other_photos/     folders named after the classes
  flowers-torch evaluate runs/photos-inception_v3-1 --tta auto        do several views of a photo help?
"""
SPLITS = ("train", "val", "test")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of evaluation."""
    parser.epilog = EXAMPLES
    add_run(parser)
    text = "other labeled photos [the test photos of the run]"
    parser.add_argument("other", nargs="?", metavar="DATA", help=text)
    add_data(parser)
    text = "train, val or test [test; all other photos]"
    parser.add_argument("--subset", default="", metavar="NAME", help=text)
    text = "test-time augmentation: auto, flip, scales, crop5, ... [none]"
    parser.add_argument("--tta", default="none", metavar="VIEWS", help=text)
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for metrics.json and predictions.csv")
    parser.add_argument("--save", action="store_true", help="replace the results of the run")
    add_json(parser)
    add_device(parser)


def run(args: argparse.Namespace) -> int:
    """Prints accuracy with its interval, averages, and each class; with --json everything."""
    check_positive(args, "batch-size")
    if args.subset not in ("", *SPLITS):
        raise UsageError(f"--subset {printable(args.subset)} is not a valid split", "use train, val or test")
    if args.moved and args.other:
        raise UsageError("--data applies only to the photos of the run", "leave out one of the two")

    from flowers_torch.evaluation.evaluate import VIEWS
    from flowers_torch.files.atomic import write_csv, write_json
    from flowers_torch.log import console
    from flowers_torch.runs.evaluate import evaluate_data, evaluate_run, rewrite_results
    from flowers_torch.runs.folder import find_run, find_run_folder

    if args.tta not in (*VIEWS, "auto"):
        what = f"--tta {printable(args.tta)} is not a valid choice of views"
        raise UsageError(what, f"use auto, {', '.join(VIEWS)}")
    if args.save:
        if args.other or args.subset or args.tta != "none" or args.out or args.json:
            raise UsageError("--save tests the run as training does", "leave out the other flags")
        with console():
            rewrite_results(find_run_folder(args.run), args.device, args.moved)
        return 0
    path = find_run(args.run)
    options = {"views": args.tta, "device": args.device, "batch_size": args.batch_size}
    if args.other:
        found = evaluate_data(path, args.other, args.subset, **options)
    elif path.is_dir():
        found = evaluate_run(path, args.subset or "test", data=args.moved, **options)
    else:
        raise UsageError("a weights file has no test photos", "name labeled photos after it")
    if found.known:
        text = f"{found.known} of these {len(found.rows)} photos trained the model or chose its weights"
        print(f"flowers-torch: {text}, so the result is too good", file=sys.stderr)
    report = {"model": str(path), **found.to_dict()}
    if args.out:
        write_json(args.out / "metrics.json", report)
        write_csv(args.out / "predictions.csv", found.rows)
    if args.json:
        print_json(report)
    else:
        _print(found)
    return 0


def _print(found: "Evaluation") -> None:
    from flowers_torch.evaluation.metrics import describe_scores, describe_small_classes

    scores, classes = found.scores, found.classes
    print(describe_scores(scores, classes, "result"))
    for name, tried in found.validation.items():
        print(f"views    {name}: validation accuracy {tried.accuracy:.4f}, loss {tried.loss:.4f}")
    if one := found.one_view:
        print(f"views    {found.views}: accuracy {scores.accuracy:.4f}, loss {scores.loss:.4f}")
        print(f"views    none: accuracy {one.accuracy:.4f}, loss {one.loss:.4f}")
    k = min(len(scores.in_top), 3)
    print(
        f"more     top-{k} {scores.in_top[k - 1] / scores.images:.4f}, "
        f"macro F1 {scores.averages()['macro']['f1']:.4f}, "
        f"Brier {scores.brier:.4f}, calibration error {scores.calibration_error:.4f}"
    )
    width = min(40, max(len(printable(name, 40)) for name in classes))
    print(f"  {'class':{width}} photos precision recall    F1")
    for name, photos, precision, recall, f1 in zip(classes, *scores.by_class().values(), strict=True):
        if photos:
            values = f"{int(photos):6} {float(precision):9.3f} {float(recall):6.3f} {float(f1):5.3f}"
            print(f"  {printable(name, 40):{width}} {values}")
    if warning := describe_small_classes(scores, classes):
        print(f"note     {warning}")
