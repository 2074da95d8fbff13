"""Find label issues, and whether more photos would help.

Both come from the features of the network before training. The results are written to label_issues.json
and the report of the run.
"""

import argparse

from flowers_torch.commands import add_data, add_json, add_run, print_json
from flowers_torch.errors import printable

SHOWN = 10  # label issues that are printed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    add_data(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    from flowers_torch.report.run_summary import LABEL_ISSUES_FILE
    from flowers_torch.runs.experiment import Experiment
    from flowers_torch.runs.folder import find_run_folder
    from flowers_torch.runs.label_issues import find_run_label_issues
    from flowers_torch.runs.results import write_run_report

    experiment, model = Experiment.open(find_run_folder(args.run), data=args.moved)
    found = find_run_label_issues(experiment)
    path = write_run_report(experiment, model, experiment.info)
    if args.json:
        print_json(found)
        return
    for point in found["curve"]:
        print("curve    {images:6} photos: accuracy {accuracy:.4f} ({low:.3f} .. {high:.3f})".format_map(point))
    print(f"curve    {found['more_photos']}")
    issues = found["label_issues"]
    print(f"labels   {len(issues)} of {found['images']} photos look like another class")
    for issue in issues[:SHOWN]:
        label, other = printable(issue["label"], 40), printable(issue["looks_like"], 40)
        file = printable(issue["file"], 100)
        print(f"  {file}: labeled {label}, looks like {other} ({issue['probability']:.2f})")
    if len(issues) > SHOWN:
        print(f"  and {len(issues) - SHOWN} more in {LABEL_ISSUES_FILE}")
    print(f"report   {printable(path)}")
