"""`flowers-torch insight RUN`: which labels are doubtful, and whether more photos would help."""

import argparse
from pathlib import Path

from flowers_torch.commands import add_data
from flowers_torch.errors import printable

SHOWN = 10  # suspects named on the console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of insight."""
    parser.description = (
        "Run the network that the run began with once over all photos, and answer from its features: which "
        "labels are doubtful, and would more photos help? Writes insight.json and the report."
    )
    parser.add_argument("run", help="run folder")
    add_data(parser)
    parser.add_argument("--json", action="store_true", help="print the answers as JSON")


def run(args: argparse.Namespace) -> int:
    """Prints the suspects and the curve."""
    from flowers_torch.runs.experiment import Experiment
    from flowers_torch.runs.label_issues import find_run_label_issues
    from flowers_torch.runs.results import write_run_report

    opened, model = Experiment.open(Path(args.run).expanduser(), data=args.moved)
    found = find_run_label_issues(opened)
    path = write_run_report(opened, model, opened.info)
    if args.json:
        from flowers_torch.files.atomic import to_json

        print(to_json(found, indent=1))
        return 0
    for point in found["curve"]:
        band = f"{point['low']:.3f} .. {point['high']:.3f}"
        print(f"curve    {point['images']:6} photos: accuracy {point['accuracy']:.4f} ({band})")
    print(f"more?    {found['more_photos']}")
    print(f"labels   {len(found['suspects'])} of {found['photos']} look like another class")
    for suspect in found["suspects"][:SHOWN]:
        print(
            f"  {printable(suspect['file'], 100)}: labelled {printable(suspect['label'], 40)}, looks like "
            f"{printable(suspect['looks_like'], 40)} ({suspect['probability']:.2f})"
        )
    if len(found["suspects"]) > SHOWN:
        print(f"  and {len(found['suspects']) - SHOWN} more in insight.json")
    print(f"report   {printable(path)}")
    return 0
