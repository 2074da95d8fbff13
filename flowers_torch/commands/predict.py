"""`flowers-torch predict`: classes and probabilities of photos."""

import argparse
import csv
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from flowers_torch.errors import UsageError, printable

if TYPE_CHECKING:
    from flowers_torch.deploy.predict import Prediction


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of prediction."""
    parser.description = "Name the class of photos with a trained model."
    parser.add_argument("model", help="run folder or model.safetensors")
    parser.add_argument("photos", nargs="+", help="files, folders, globs")
    parser.add_argument("--top", type=int, default=1, metavar="K", help="classes to print for each photo")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print a JSON list")
    form.add_argument("--csv", action="store_true", help="print a CSV table")
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="photos computed at once")
    parser.add_argument("--device", default="auto", help="auto | cpu | cuda | cuda:1 | mps")
    parser.add_argument("--precision", default="fp32", help="fp32 | bf16 | fp16 | auto")


def run(args: argparse.Namespace) -> int:
    """Prints an answer for each photo; exit code 3 where some could not be read."""
    if args.top < 1 or args.batch_size < 1:
        raise UsageError("--top and --batch-size must be 1 or more", "give a positive number")

    from flowers_torch.deploy.predict import Classifier, find_files
    from flowers_torch.training.runtime import choose_runtime

    photos = find_files(args.photos)
    classifier = Classifier.load(Path(args.model).expanduser(), choose_runtime(args.device, args.precision))
    classes = len(classifier.record.classes)
    if args.top > classes:
        raise UsageError(f"--top {args.top}: the model knows {classes} classes", f"use --top {classes}")
    answers = classifier.predict(photos, args.top, args.batch_size)

    failed = 0
    records = []
    table = csv.writer(sys.stdout, lineterminator="\n")
    if args.csv:
        table.writerow(["file", "rank", "class", "probability", "error"])
    for answer in answers:
        failed += bool(answer.error)
        pairs = list(zip(answer.classes, answer.probabilities, strict=True))
        if args.json:
            records.append(_to_json(answer, pairs))
        elif args.csv:
            file = answer.file.encode("utf-8", "backslashreplace").decode()
            rows = [[file, rank, name, f"{p:.6f}", ""] for rank, (name, p) in enumerate(pairs, start=1)]
            table.writerows(rows or [[file, "", "", "", answer.error]])
        elif answer.error:
            print(f"flowers-torch: {answer.error}", file=sys.stderr)
        else:
            text = ", ".join(f"{printable(name, 60)} {p:.3f}" for name, p in pairs)
            print(f"{printable(answer.file)}: {text}")
    if args.json:
        print(json.dumps(records, indent=1))
    if failed:
        print(f"flowers-torch: {failed} of {len(photos)} photos could not be read", file=sys.stderr)
    return 3 if failed else 0


def _to_json(answer: "Prediction", pairs: list[tuple[str, float]]) -> dict[str, object]:
    if answer.error:
        return {"file": answer.file, "error": answer.error}
    return {"file": answer.file, "classes": [{"class": n, "probability": p} for n, p in pairs]}
