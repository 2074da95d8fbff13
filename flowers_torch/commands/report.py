"""`flowers-torch report RUN`: builds the report of a finished run anew."""

import argparse
from pathlib import Path

from flowers_torch.commands import add_data
from flowers_torch.errors import printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the report."""
    parser.description = (
        "Build report.html of a finished run anew, from what its folder holds and its photos."
    )
    parser.add_argument("run", help="run folder")
    add_data(parser)
    parser.add_argument(
        "--no-photos", action="store_true", help="leave the pictures out: the photos are gone or private"
    )


def run(args: argparse.Namespace) -> int:
    """Writes the report and prints where it is."""
    from flowers_torch.models.checkpoint import load_classifier
    from flowers_torch.report.page import write_report
    from flowers_torch.runs.experiment import Experiment
    from flowers_torch.runs.results import write_run_report

    folder = Path(args.run).expanduser()
    if args.no_photos:
        path = write_report(folder, load_classifier(folder)[1], None)
    else:
        experiment, model = Experiment.open(folder, data=args.moved)
        path = write_run_report(experiment, model, experiment.info)
    print(f"report   {printable(path)}, {path.stat().st_size / 1e6:.1f} MB")
    return 0
