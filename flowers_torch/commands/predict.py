"""`flowers-torch predict`: classes and probabilities of photos."""

import argparse
import csv
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowers_torch.errors import DataError, UsageError, printable

if TYPE_CHECKING:
    from flowers_torch.deploy.classifier import Classifier, ImageSource, Prediction

EXAMPLES = """examples:
  flowers-torch predict runs/photos-inception_v3-1 new.jpg --top 3
  flowers-torch predict runs/photos-inception_v3-1 holiday/ --max-error 2% --sort-into sorted/
  flowers-torch predict model.safetensors https://example.org/rose.jpg --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of prediction."""
    parser.description = "Name the class of photos with a trained model."
    parser.epilog = EXAMPLES
    parser.add_argument("model", help="run folder or model.safetensors")
    parser.add_argument("photos", nargs="+", help="files, folders, globs, addresses")
    parser.add_argument("--top", type=int, default=1, metavar="K", help="classes to print for each photo")
    parser.add_argument("--max-error", metavar="P", help="rather say unsure than err more often, as 2%%")
    parser.add_argument("--sort-into", type=Path, metavar="DIR", help="link the photos into folders by class")
    parser.add_argument(
        "--gradcam", type=Path, metavar="DIR", help="write pictures of where the network looked"
    )
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
    max_error = share(args.max_error) if args.max_error is not None else None

    from flowers_torch.deploy.classifier import Classifier, find_inputs
    from flowers_torch.deploy.sort import check_folder, sort_into
    from flowers_torch.log import bar
    from flowers_torch.training.device import choose_runtime

    photos = find_inputs(args.photos)
    if args.sort_into:
        check_folder(args.sort_into, [photo for photo in photos if isinstance(photo, Path)])
    classifier = Classifier.load(Path(args.model).expanduser(), choose_runtime(args.device, args.precision))
    classes = len(classifier.info.classes)
    if args.top > classes:
        raise UsageError(f"--top {args.top}: the model knows {classes} classes", f"use --top {classes}")
    least = 0.0
    if max_error is not None:
        threshold = classifier.threshold(max_error)
        least = threshold.probability
        print(f"flowers-torch: {threshold.describe()}", file=sys.stderr)

    failed = 0
    records = []
    table = csv.writer(sys.stdout, lineterminator="\n")
    if args.csv:
        table.writerow(["file", "rank", "class", "probability", "reason", "error"])
    with bar("predict", len(photos)) as meter:
        answers = classifier.predict(photos, args.top, args.batch_size, least)
        for number, (photo, answer) in enumerate(zip(photos, answers, strict=True)):
            failed += bool(answer.error)
            extra: dict[str, Any] = {}
            if args.sort_into:
                extra["sorted"] = str(sort_into(args.sort_into, answer))
            if args.gradcam and not answer.error:
                extra["gradcam"] = str(_explain(classifier, photo, args.gradcam, number))
            if args.json:
                records.append(answer.to_dict() | extra)
            elif args.csv:
                table.writerows(_to_rows(answer))
            elif answer.error:
                meter.write(f"flowers-torch: {answer.error}", file=sys.stderr)
            else:
                meter.write(_to_text(answer, unsure=max_error is not None), file=sys.stdout)
            meter.update()
    if args.json:
        from flowers_torch.files.atomic import to_json

        print(to_json(records, indent=1))
    if failed:
        print(f"flowers-torch: {failed} of {len(photos)} photos could not be read", file=sys.stderr)
    return DataError.exit_code if failed else 0  # guard: K08


def share(text: str, flag: str = "--max-error") -> float:
    """2% or 0.02, given to a flag, as 0.02."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise UsageError(f"{flag} {printable(text, 40)} is no share of answers", "give such as 2%")
    return value


def _explain(classifier: "Classifier", photo: "ImageSource", folder: Path, number: int) -> Path:
    from flowers_torch.files.atomic import atomic_write

    picture = classifier.explain(photo)
    path = folder / f"{number:04d}-{Path(str(photo)).stem[:80]}.jpg"
    with atomic_write(path) as file:
        picture.save(file, "JPEG", quality=90)
    return path


def _to_text(answer: "Prediction", unsure: bool) -> str:
    pairs = zip(answer.classes, answer.probabilities, strict=True)
    text = ", ".join(f"{printable(name, 60)} {p:.3f}" for name, p in pairs)
    if answer.reason:
        text = f"unsure ({answer.reason}; {text})" if unsure else f"{text} ({answer.reason})"
    return f"{printable(answer.file)}: {text}"


def _to_rows(answer: "Prediction") -> list[list[object]]:
    file = answer.file.encode("utf-8", "backslashreplace").decode()
    if answer.error:
        return [[file, "", "", "", "", answer.error]]
    pairs = zip(answer.classes, answer.probabilities, strict=True)
    return [
        [file, rank, name, f"{p:.6f}", answer.reason, ""] for rank, (name, p) in enumerate(pairs, start=1)
    ]
