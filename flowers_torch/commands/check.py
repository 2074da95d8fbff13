"""`flowers-torch check DATA`: what is wrong with a set of photos, worst first."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flowers_torch.errors import DataError, UsageError, printable
from flowers_torch.shell import command_line

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from flowers_torch.data.dataset import ImageDataset
    from flowers_torch.data.preprocessing import Preprocessing
    from flowers_torch.data.quality.inspection import Inspection

EXAMPLES = """examples:
  flowers-torch check photos/                       the to-do list
  flowers-torch check photos/ --out check/          and gallery.html, exclude.csv, check.json
  flowers-torch check photos.zip --json | jq .findings
  flowers-torch check photos/ --embed tf_efficientnet_lite0 --weights offline    finds more twins
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.epilog, parser.formatter_class = EXAMPLES, argparse.RawDescriptionHelpFormatter
    parser.add_argument("data", help="folder, archive, CSV of labels, flowers17 or demo")
    parser.add_argument("--out", type=Path, help="folder for gallery.html, exclude.csv and check.json")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument("--split", type=Path, help="split.json of a run: look for twins across its parts")
    parser.add_argument("--strict", action="store_true", help="exit 3 for twins across parts or classes too")
    parser.add_argument(
        "--embed", metavar="NET", help="also find twins by a network: a run folder, or a name with --weights"
    )
    parser.add_argument("--weights", default="", help="of --embed: imagenet | offline | file")
    parser.add_argument("--workers", type=int, help="processes that decode (default: one a core)")


def run(args: argparse.Namespace) -> int:
    """Prints the findings; 3 if photos cannot be read, with --strict also for other damage of that degree."""
    from flowers_torch.data.quality.report import check_quality, write_exclude_list
    from flowers_torch.data.quality.scan import inspect_images
    from flowers_torch.data.sources.open import open_dataset
    from flowers_torch.data.splits.split_file import load_split
    from flowers_torch.files.atomic import to_json, write_json
    from flowers_torch.report.gallery import write_gallery

    if args.weights and not args.embed:
        raise UsageError("--weights is for --embed", "name a network with --embed")
    network = _open_network(args.embed, args.weights) if args.embed else None
    photos = open_dataset(args.data)
    if args.out:
        _check_out(args.out, photos.root)
    split = None
    if args.split:
        split, changes = load_split(args.split, photos)
        changes.refuse(args.split, "restore them, or leave out --split")
    inspections = inspect_images(photos, args.workers, progress=_progress(len(photos)))
    features = _features(network, photos, inspections) if network else None
    result = check_quality(photos, inspections, split, features)
    if args.out:
        write_gallery(args.out / "gallery.html", result)
        write_exclude_list(args.out / "exclude.csv", result)
        write_json(args.out / "check.json", result.as_json())
    if args.json:
        print(to_json(result.as_json(), indent=1))
    else:
        print(f"{printable(photos.name)}: {len(photos)} photos of {len(photos.classes)} classes")
        for number, finding in enumerate(result.findings, start=1):
            print(f"{number:3}. [{'!' * finding.severity:3}] {finding.what}; {finding.todo}")
            for group in finding.groups[:3]:
                print(f"           {' = '.join(printable(photos.paths[i], 80) for i in group)}")
            if len(finding.groups) > 3:
                print(f"           and {len(finding.groups) - 3} more")
        if not result.findings:
            print("nothing was found")
        if args.out:
            print(f"look at {printable(args.out / 'gallery.html')}")
    worst = [finding for finding in result.findings if finding.severity == 3]
    blocking = worst if args.strict else [f for f in worst if f.kind in ("unreadable", "no_readable_image")]
    if blocking:
        where = args.out / "exclude.csv" if args.out else "exclude.csv"
        fix = f"repair them, or leave them out with {command_line('--exclude', where)}"
        raise DataError(f"{printable(photos.name)}: {blocking[0].what}", fix)
    return 0


def _open_network(name: str, weights: str) -> "tuple[nn.Module, Preprocessing]":
    from flowers_torch.deploy.features import open_network

    model, preprocessing, loaded = open_network(name, weights)
    print(loaded, file=sys.stderr)
    return model, preprocessing


def _features(
    network: "tuple[nn.Module, Preprocessing]", photos: "ImageDataset", inspections: "Sequence[Inspection]"
) -> "np.ndarray":
    """A row for each photo; zeros for those that cannot be read."""
    import numpy as np

    from flowers_torch.deploy.features import image_features
    from flowers_torch.training.device import choose_runtime

    good = [index for index, seen in enumerate(inspections) if not seen.error]
    paths = [photos.root / photos.paths[index] for index in good]
    found = image_features(*network, paths, choose_runtime("auto", "fp32"), progress=_progress(len(good)))
    features = np.zeros((len(photos), found.shape[1]), dtype=np.float32)
    features[good] = found.numpy()
    return features


def _check_out(out: Path, root: Path) -> None:
    """The results must not become part of the photos."""
    if out.resolve() == root.resolve() or root.resolve() in out.resolve().parents:
        raise DataError(f"--out {printable(out)} lies inside the photos", "choose a folder outside of them")


def _progress(total: int):  # type: ignore[no-untyped-def]
    if not sys.stderr.isatty():
        return None
    from tqdm import tqdm

    bar = tqdm(total=total, unit="photo", desc="check", leave=False)
    return lambda done: bar.update(done - bar.n)
