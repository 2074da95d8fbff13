"""Rebuild report.html of a finished run from its folder and its photos."""

import argparse

from flowers_torch.commands import add_data, add_run
from flowers_torch.errors import printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    add_data(parser)
    parser.add_argument("--no-photos", action="store_true", help="leave out the photos, if they are gone or private")


def run(args: argparse.Namespace) -> None:
    from flowers_torch.models.checkpoint import load_classifier
    from flowers_torch.report.page import write_report
    from flowers_torch.runs.experiment import Experiment
    from flowers_torch.runs.folder import find_run_folder
    from flowers_torch.runs.results import write_run_report

    folder = find_run_folder(args.run)
    if args.no_photos:
        path = write_report(folder, load_classifier(folder)[1], None)
    else:
        experiment, model = Experiment.open(folder, data=args.moved)
        path = write_run_report(experiment, model, experiment.info)
    print(f"report   {printable(path)}, {path.stat().st_size / 1e6:.1f} MB")
