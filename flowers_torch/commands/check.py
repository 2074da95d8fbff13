"""Find problems of a data set, the most severe first, and what to do about each."""

import argparse
import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowers_torch.commands import add_json, print_json
from flowers_torch.errors import DataError, UsageError, printable
from flowers_torch.shell import command_line

if TYPE_CHECKING:
    import numpy as np

    from flowers_torch.data.dataset import ImageDataset

EXAMPLES = """examples:
  flowers-torch check photos/                       the to-do list
  flowers-torch check photos/ --out check/          and gallery.html, exclude.csv, check.json
  flowers-torch check photos.zip --json | jq .findings
  flowers-torch check photos/ --embed tf_efficientnet_lite0 --weights offline    finds more duplicates
"""
GROUPS_SHOWN = 3  # of a finding


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", metavar="DATA", help="folder, archive, table, flowers17 or demo")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for gallery.html, exclude.csv and check.json")
    add_json(parser)
    parser.add_argument("--run", metavar="RUN", help="run on these photos: find duplicates across its splits")
    parser.add_argument("--strict", action="store_true", help="exit with 3 for duplicates across splits or classes too")
    text = "also find duplicates by features of a run, or of a network with --weights"
    parser.add_argument("--embed", metavar="NET", help=text)
    parser.add_argument("--weights", default="", metavar="NAME", help="weights of NET")
    parser.add_argument("--workers", type=int, metavar="N", help="processes that decode photos [one per core]")


def run(args: argparse.Namespace) -> int | None:
    """Prints the findings; exit code 3 if photos cannot be read, with --strict for any severe finding."""
    if args.weights and not args.embed:
        raise UsageError("--weights needs --embed", "name a network with --embed")

    from flowers_torch.data.quality.report import check_quality, write_exclude_list
    from flowers_torch.data.quality.scan import inspect_images
    from flowers_torch.data.sources.open import open_dataset
    from flowers_torch.data.splits.split_file import load_split
    from flowers_torch.data.value_range import range_of_set
    from flowers_torch.files.atomic import write_json
    from flowers_torch.report.gallery import write_gallery
    from flowers_torch.runs.folder import find_run_folder

    dataset = open_dataset(args.data)
    root = dataset.root.resolve()
    if args.out and root in (args.out.resolve(), *args.out.resolve().parents):
        raise DataError(f"--out {printable(args.out)} is inside the photos", "choose a folder outside of them")
    splits = None
    if args.run:
        file = find_run_folder(args.run) / "split.json"
        splits, changes = load_split(file, dataset)
        changes.refuse(file, "restore them, or leave out --run")
    inspections = inspect_images(dataset, args.workers, progress=_progress(len(dataset)))
    readable = [index for index, inspection in enumerate(inspections) if not inspection.error]
    value_range = range_of_set([inspection.values for inspection in inspections])
    features = _features(args.embed, args.weights, dataset, readable, value_range) if args.embed else None
    result = check_quality(dataset, inspections, splits, features)
    if args.out:
        write_gallery(args.out / "gallery.html", result)
        write_exclude_list(args.out / "exclude.csv", result)
        write_json(args.out / "check.json", result.as_json())
    if args.json:
        print_json(result.as_json())
    else:
        print(f"{printable(dataset.name)}: {len(dataset)} photos of {len(dataset.classes)} classes")
        for number, finding in enumerate(result.findings, start=1):
            print(f"{number:3}. [{'!' * finding.severity:3}] {finding.what}; {finding.todo}")
            for group in finding.groups[:GROUPS_SHOWN]:
                print(f"           {' = '.join(printable(dataset.paths[i], 80) for i in group)}")
            if len(finding.groups) > GROUPS_SHOWN:
                print(f"           and {len(finding.groups) - GROUPS_SHOWN} more")
        if not result.findings:
            print("no problems found")
        if args.out:
            print(f"gallery  {printable(args.out / 'gallery.html')}")
    severe = [finding for finding in result.findings if finding.severity == 3]
    if not args.strict:
        severe = [finding for finding in severe if finding.kind in ("unreadable", "no_readable_image")]
    if not severe:
        return None
    exclude = command_line("--exclude", args.out / "exclude.csv" if args.out else "exclude.csv")
    error = DataError(f"{printable(dataset.name)}: {severe[0].what}", f"repair them, or leave them out with {exclude}")
    if not args.json:
        raise error
    print(f"flowers-torch: error: {error}", file=sys.stderr)  # stdout holds one JSON text
    return error.exit_code


def _features(
    name: str, weights: str, dataset: "ImageDataset", readable: list[int], value_range: tuple[float, ...]
) -> "np.ndarray":
    """A row for each image; zeros for those that are not readable. The range is used unless the model has one."""
    import numpy as np

    from flowers_torch.deploy.features import image_features, open_network
    from flowers_torch.runs.folder import find_run
    from flowers_torch.training.device import choose_runtime

    model, preprocessing, loaded = open_network(name if weights else str(find_run(name)), weights)
    print(loaded, file=sys.stderr)
    preprocessing = dataclasses.replace(preprocessing, value_range=preprocessing.value_range or value_range)
    paths = [dataset.root / dataset.paths[index] for index in readable]
    runtime, progress = choose_runtime("auto", "fp32"), _progress(len(readable))
    found = image_features(model, preprocessing, paths, runtime, progress=progress)
    features = np.zeros((len(dataset), found.shape[1]), dtype=np.float32)
    features[readable] = found.numpy()
    return features


def _progress(total: int) -> Callable[[int], Any]:
    from flowers_torch.log import bar

    meter = bar("check", total)
    return lambda done: meter.update(done - meter.n)
