"""Find problems of a data set, the most severe first, and what to do about each."""

import argparse
import dataclasses
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowers_torch.commands import add_classes, add_json, print_json
from flowers_torch.errors import DataError, UsageError, plural, printable
from flowers_torch.shell import command_line

if TYPE_CHECKING:
    import numpy as np

    from flowers_torch.data.dataset import ImageDataset
    from flowers_torch.data.quality.duplicates import Duplicates
    from flowers_torch.data.quality.report import Finding, QualityReport
    from flowers_torch.data.quality.series import Series
    from flowers_torch.data.spread import Spread
    from flowers_torch.deploy.shards import FeatureJob

EXAMPLES = """examples:
  flowers-torch check photos/                       the to-do list
  flowers-torch check photos/ --out check/          and gallery.html, exclude.csv, groups.csv, check.json
  flowers-torch check photos.zip --json | jq .findings
  flowers-torch check photos/ --embed tf_efficientnet_lite0 --weights offline    finds more duplicates
"""
GROUPS_SHOWN = 3  # of a finding
GROUPS_FILE = "groups.csv"
IMAGES_AT_ONCE = 2048  # of which features are computed together


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", metavar="DATA", help="folder, archive, table, hf:NAME, flowers17 or demo")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for gallery.html and the lists")
    add_classes(parser)
    text = "labeled photos of the test, as DATA; val: the validation photos of a source without a test"
    parser.add_argument("--test", default="", metavar="DATA", help=text)
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

    from flowers_torch.training.distributed import distributed_context

    with distributed_context("cpu") as distributed:  # torchrun starts several processes
        return distributed.lead(lambda: _check(args, distributed.spread))


def _check(args: argparse.Namespace, spread: "Spread") -> int | None:
    from flowers_torch.data.quality.duplicates import near_duplicates
    from flowers_torch.data.quality.exclude import write_exclude_list
    from flowers_torch.data.quality.report import check_quality
    from flowers_torch.data.quality.scan import inspect_images
    from flowers_torch.data.quality.series import group_rows
    from flowers_torch.data.sources.open import open_dataset
    from flowers_torch.data.splits.split_file import load_split
    from flowers_torch.data.value_range import range_of_set
    from flowers_torch.files.atomic import write_csv, write_json
    from flowers_torch.report.gallery import write_gallery
    from flowers_torch.runs.folder import find_run_folder

    run_folder = find_run_folder(args.run) if args.run else None  # before the photos, which may take long
    dataset = open_dataset(args.data, classes=args.classes, test=args.test)
    root = dataset.root.resolve()
    if args.out and root in (args.out.resolve(), *args.out.resolve().parents):
        raise DataError(f"--out {printable(args.out)} is inside the photos", "choose a folder outside of them")
    splits = None
    if run_folder:
        file = run_folder / "split.json"
        splits, changes = load_split(file, dataset)
        changes.refuse(file, "restore them, or leave out --run")
    inspections = inspect_images(dataset, args.workers, None, _progress(len(dataset)), spread)
    readable = [index for index, inspection in enumerate(inspections) if not inspection.error]
    value_range = range_of_set([inspection.values for inspection in inspections])
    features = _features(args, dataset, readable, value_range, spread) if args.embed else None
    duplicates = near_duplicates(dataset, inspections)
    result = check_quality(dataset, inspections, splits, features, duplicates)
    series, found = _find_series(args, dataset, readable, duplicates, features, value_range)
    findings = sorted([*found, *result.findings], key=lambda finding: -finding.severity)
    result = dataclasses.replace(result, findings=findings)
    if args.out:
        write_gallery(args.out / "gallery.html", result)
        write_exclude_list(args.out / "exclude.csv", result.exclude_list())
        write_json(args.out / "check.json", result.as_json())
        if series:
            rows = group_rows(dataset, series.groups, duplicates.groups)
            write_csv(args.out / GROUPS_FILE, rows, ["file", "group"])
    if args.json:
        print_json(result.as_json())
    else:
        _print_report(args, result, duplicates)
    severe = [finding for finding in result.findings if finding.severity == 3]
    if not args.strict:
        severe = [finding for finding in severe if finding.kind in ("unreadable", "no_readable_image")]
    if not severe:
        return None
    exclude = command_line("--exclude", args.out / "exclude.csv") if args.out else "--skip-bad"
    fix = f"{severe[0].todo}; or leave them out with {exclude}"
    if not args.out:
        fix += ", or add --out DIR, which writes an exclude list"
    error = DataError(f"{printable(dataset.name)}: {severe[0].what}", fix)
    if not args.json:
        raise error
    print(f"flowers-torch: error: {error}", file=sys.stderr)  # stdout holds one JSON text
    return error.exit_code


def _find_series(
    args: argparse.Namespace,
    dataset: "ImageDataset",
    readable: list[int],
    duplicates: "Duplicates",
    features: "np.ndarray | None",
    value_range: tuple[float, ...],
) -> tuple["Series | None", list["Finding"]]:
    """The series of photos that no group keeps together, and the finding that proposes to do so."""
    from flowers_torch.data.dataset import COLUMN_MARK
    from flowers_torch.data.quality.report import Finding
    from flowers_torch.data.quality.series import Series, find_series, measure_series, thumbnail_vectors
    from flowers_torch.data.sources.open import open_dataset
    from flowers_torch.data.spread import alone
    from flowers_torch.deploy.shards import FeatureJob
    from flowers_torch.models.offline import OFFLINE_ARCH, offline_weights_path

    if dataset.groups:
        return None, []
    series = find_series(dataset, duplicates.look_alikes)
    option = f"--groups {GROUPS_FILE}, which --out DIR writes"
    if args.out:
        option = command_line("--groups", args.out / GROUPS_FILE)
    if dataset.group_columns:
        option = f"{COLUMN_MARK}{dataset.group_columns[0]}"
        names = open_dataset(args.data, groups=option, test=args.test).groups
        groups = {index: names[path] for index, path in enumerate(dataset.paths) if path in names}
        series, option = Series(f"column {dataset.group_columns[0]}", groups), command_line("--groups", option)
    if series is None:
        return None, []
    compared = f"features of {args.embed}"
    if features is None:
        try:
            offline_weights_path()
            compared = f"features of {OFFLINE_ARCH}"
        except UsageError:
            compared = "thumbnails of 16 x 16 pixels"

    def vectors(chosen: list[int]) -> "np.ndarray":
        if features is not None:
            return features[chosen]
        if compared.startswith("thumbnails"):
            return thumbnail_vectors(dataset, chosen)
        usable = sorted(set(chosen) & set(readable))
        return _rows_of(FeatureJob(OFFLINE_ARCH, "offline", value_range), dataset, usable, alone)[chosen]

    scores = measure_series(dataset, series.groups, vectors)
    what = f"{series.describe()}{f'; {scores.describe(compared)}' if scores else ''}"
    return series, [Finding("series", 2, what, f"keep each in one split with {option}")]


def _describe_splits(data: str, dataset: "ImageDataset", duplicates: "Duplicates") -> str:
    """The splits that training makes by default."""
    from flowers_torch.config import Config, split_fractions
    from flowers_torch.data.splits.assign import describe_splits
    from flowers_torch.errors import FlowersError
    from flowers_torch.runs.dataset import choose_splits

    config = Config(data=data)
    how = f"{' and '.join(sorted(set(dataset.split.values())))} are given" if dataset.split else "none is given"
    try:
        splits = choose_splits(dataset, config, duplicates.groups)
    except FlowersError as error:
        return f"{how}; training cannot draw them: {error}"
    text = describe_splits(dataset, splits, split_fractions(config.split) or ()).partition(": ")[2]
    return f"{how}; training takes {text}"


def _print_report(args: argparse.Namespace, result: "QualityReport", duplicates: "Duplicates") -> None:
    from flowers_torch.data.sources.rows import counted

    dataset = result.dataset
    counts = counted(Counter(dict(zip(dataset.classes, dataset.counts(), strict=True))))
    shape = f"{plural(dataset, 'photo')} of {plural(dataset.classes, 'class')}"
    print(f"read     {printable(dataset.name)}: {shape} ({counts}){f'; {dataset.layout}' if dataset.layout else ''}")
    print(f"splits   {_describe_splits(args.data, dataset, duplicates)}")
    print(f"not used {'; '.join(dataset.unused) or 'nothing: every folder, column and photo is used'}")
    findings = [finding for finding in result.findings if finding.kind != "unused"]
    for number, finding in enumerate(findings, start=1):
        print(f"{number:3}. [{'!' * finding.severity:3}] {finding.what}; {finding.todo}")
        for group in finding.groups[:GROUPS_SHOWN]:
            print(f"           {' = '.join(printable(dataset.paths[i], 80) for i in group)}")
        if len(finding.groups) > GROUPS_SHOWN:
            print(f"           and {len(finding.groups) - GROUPS_SHOWN} more")
    if not findings:
        print("no problems found")
    if args.out:
        print(f"gallery  {printable(args.out / 'gallery.html')}")


def _features(
    args: argparse.Namespace,
    dataset: "ImageDataset",
    readable: list[int],
    value_range: tuple[float, ...],
    spread: "Spread",
) -> "np.ndarray":
    """What --embed names computes: a row for each image; zeros for those that are not readable."""
    from flowers_torch.deploy.shards import FeatureJob
    from flowers_torch.runs.folder import find_run

    name = args.embed if args.weights else str(find_run(args.embed))
    job = FeatureJob(name, args.weights, value_range)
    print(job.describe(), file=sys.stderr)
    return _rows_of(job, dataset, readable, spread)


def _rows_of(job: "FeatureJob", dataset: "ImageDataset", readable: list[int], spread: "Spread") -> "np.ndarray":
    import numpy as np

    progress, found = _progress(len(readable)), list["np.ndarray"]()
    for start in range(0, len(readable), IMAGES_AT_ONCE):
        paths = [dataset.root / dataset.paths[index] for index in readable[start : start + IMAGES_AT_ONCE]]
        found += spread(job.rows, paths, 32)
        progress(len(found))
    features = np.zeros((len(dataset), len(found[0]) if found else 1), dtype=np.float32)
    features[readable] = found
    return features


def _progress(total: int) -> Callable[[int], Any]:
    from flowers_torch.log import bar

    meter = bar("check", total)
    return lambda done: meter.update(done - meter.n)
