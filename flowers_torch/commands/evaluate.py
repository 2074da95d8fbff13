"""Measure a trained model on labeled photos: accuracy and more, with 95% intervals."""

import argparse
from pathlib import Path

from flowers_torch.commands import (
    add_classes,
    add_data,
    add_device,
    add_json,
    add_run,
    check_positive,
    print_json,
    warn,
)
from flowers_torch.errors import UsageError, plural, printable

EXAMPLES = """examples:
  flowers-torch evaluate runs/photos-inception_v3-1                   its own test photos again
  flowers-torch evaluate runs/photos-inception_v3-1 other_photos/     folders named after the classes
  flowers-torch evaluate runs/photos-inception_v3-1 --tta auto        do several views of a photo help?
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument("other", nargs="?", metavar="DATA", help="other labeled photos [the test photos of the run]")
    add_data(parser)
    add_classes(parser)
    parser.add_argument("--subset", default="", metavar="NAME", help="train, val or test [test; all other photos]")
    text = "test-time augmentation: auto, flip, scales, crop5, ... [none]"
    parser.add_argument("--tta", default="none", metavar="VIEWS", help=text)
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for metrics.json and predictions.csv")
    parser.add_argument("--save", action="store_true", help="replace the results of the run")
    add_json(parser)
    add_device(parser)


def run(args: argparse.Namespace) -> None:
    check_positive(args, "batch-size")
    if args.moved and args.other:
        raise UsageError("--data applies only to the photos of the run", "leave out one of the two")
    if args.classes and not args.other:
        raise UsageError("--classes applies only to other labeled photos", "name them after RUN")

    from flowers_torch.api.classifier import Classifier
    from flowers_torch.evaluation.metrics import describe_scores, describe_small_classes
    from flowers_torch.files.atomic import write_csv, write_json
    from flowers_torch.log import console
    from flowers_torch.runs.evaluate import check_choices, rewrite_results
    from flowers_torch.runs.folder import find_run_folder

    check_choices(args.subset, args.tta)
    if args.save:
        if args.other or args.subset or args.tta != "none" or args.out or args.json:
            raise UsageError("--save tests the run as training does", "leave out the other flags")
        with console():
            rewrite_results(find_run_folder(args.run), args.device, args.moved)
        return
    classifier = Classifier.load(args.run, args.device)
    more = {"classes": args.classes, "moved": args.moved}
    found = classifier.evaluate(args.other, args.subset, args.tta, args.batch_size, **more)
    if found.known:
        known = f"{found.known} of the {plural(found.rows, 'photo')} trained the model or chose its weights"
        warn(f"{known}, so the result is too good")
    elif found.known is None:
        warn("a weights file does not tell which photos trained it; if some are among these, the result is too good")
    report = {"model": str(classifier.path), **found.to_dict()}
    if args.out:
        write_json(args.out / "metrics.json", report)
        write_csv(args.out / "predictions.csv", found.rows)
    if args.json:
        print_json(report)
        return
    scores, classes = found.scores, found.classes
    print(describe_scores(scores, classes, "result"))
    for name, tried in found.validation.items():
        print(f"views    {name}: validation accuracy {tried.accuracy:.4f}, loss {tried.loss:.4f}")
    if found.choice:
        print(f"note     with {found.views}, {found.choice}")
    if found.one_view:
        for name, one in ((found.views, scores), ("none", found.one_view)):
            print(f"views    {name}: accuracy {one.accuracy:.4f}, loss {one.loss:.4f}")
    k = min(len(scores.in_top), 3)
    top = f"top-{k} {scores.in_top[k - 1] / scores.images:.4f}, macro F1 {scores.averages()['macro']['f1']:.4f}"
    print(f"more     {top}, Brier {scores.brier:.4f}, calibration error {scores.calibration_error:.4f}")
    width = min(40, max(len(printable(name, 40)) for name in classes))
    print(f"  {'class':{width}} photos precision recall    F1")
    columns = (column.tolist() for column in scores.by_class().values())
    for name, photos, *values in zip(classes, *columns, strict=True):
        if photos:
            print(f"  {printable(name, 40):{width}} {photos:6.0f} {'{:9.3f} {:6.3f} {:5.3f}'.format(*values)}")
    if warning := describe_small_classes(scores, classes):
        print(f"note     {warning}")
