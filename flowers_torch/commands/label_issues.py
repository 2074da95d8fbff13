"""Find label issues, and whether more photos would help.

Both come from linear heads on the features of the network before training. With further runs of the same
photos, the probabilities of all networks are averaged. The results are written to label_issues.json and the
report of the first run.
--review opens a page on this machine to decide on the issues one by one. It writes labels.csv into the run
folder, a table for `train --data`; no photo is changed or moved.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from flowers_torch.commands import RUN_HELP, add_data, add_json, print_json, set_allocator_of_run
from flowers_torch.errors import UsageError, plural, printable

if TYPE_CHECKING:
    from torch import Tensor

    from flowers_torch.runs.experiment import Experiment

EXAMPLES = """examples:
  flowers-torch label-issues runs/garden-inception_v3-1
  flowers-torch label-issues RUN_A RUN_B                averages two networks, which finds more
  flowers-torch label-issues latest --review            decide on them in the browser; Ctrl-C ends
  flowers-torch label-issues latest --csv issues.csv    a table for other programs
"""
SHOWN = 10  # label issues that are printed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    text = "further runs of the same photos with other networks"
    parser.add_argument("run", metavar="RUN", help=RUN_HELP)
    parser.add_argument("others", nargs="*", metavar="RUN", help=text)
    add_data(parser)
    parser.add_argument("--review", action="store_true", help="decide on the issues on a page of this machine")
    parser.add_argument("--port", type=int, default=0, metavar="N", help="of the page; 0 takes a free one [0]")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="table of the issues to write")
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    if not 0 <= args.port < 65536:
        raise UsageError(f"--port {args.port} is not a valid port: expected 0 .. 65535", "give another --port, or 0")

    from flowers_torch.report.run_summary import LABEL_ISSUES_FILE
    from flowers_torch.runs.experiment import Experiment
    from flowers_torch.runs.folder import find_run_folder
    from flowers_torch.runs.label_issues import features_of_runs, find_run_label_issues, write_issue_table
    from flowers_torch.runs.results import write_run_report

    folder = find_run_folder(args.run)
    set_allocator_of_run(folder, {"device": "auto"})  # that of the training may be missing here
    experiment, model = Experiment.open(folder, data=args.moved)
    networks = features_of_runs(experiment, [find_run_folder(name) for name in args.others], args.moved)
    found = find_run_label_issues(experiment, networks)
    path = write_run_report(experiment, model, experiment.info)
    if args.csv:
        write_issue_table(args.csv.expanduser(), experiment, found)
    if not args.json:
        _print_findings(found)
        more = len(found["label_issues"]) - SHOWN
        if more > 0:
            print(f"  and {more} more in {args.csv and printable(args.csv) or LABEL_ISSUES_FILE}")
        if args.csv:
            print(f"table    {printable(args.csv)}")
        print(f"report   {printable(path)}")
    if args.review:
        found |= {"review": _review(experiment, found, networks[0], args)}
    if args.json:
        print_json(found)


def _print_findings(found: dict[str, Any]) -> None:
    for point in found["curve"]:
        print("curve    {images:6} photos: accuracy {accuracy:.4f} ({low:.3f} .. {high:.3f})".format_map(point))
    print(f"curve    {found['more_photos']}")
    issues = found["label_issues"]
    count = f"{len(issues)} of {plural(found['images'], 'photo')}"
    print(f"labels   {count} {'looks' if len(issues) == 1 else 'look'} like another class")
    for issue in issues[:SHOWN]:
        label, other = printable(issue["label"], 40), printable(issue["looks_like"], 40)
        file = printable(issue["file"], 100)
        print(f"  {file}: labeled {label}, looks like {other} ({issue['probability']:.2f})")


def _review(
    experiment: "Experiment", found: dict[str, Any], features: "Tensor", args: argparse.Namespace
) -> dict[str, Any]:
    """Serves the page until Ctrl-C; returns what is saved."""
    from flowers_torch.runs.label_review import LabelReview
    from flowers_torch.runs.review_page import open_browser, review_page

    review = LabelReview(experiment, found["label_issues"], features)
    out = sys.stderr if args.json else sys.stdout
    with review_page(review, experiment.info.preprocessing.value_range, args.port) as page:
        print(f"review   {page.url} (Ctrl-C ends; each decision is saved immediately)", file=out, flush=True)
        try:
            open_browser(page.url)
            page.serve_forever()
        except KeyboardInterrupt:
            pass
        finally:  # SIGTERM ends the command too
            saved = review.summary()
            _print_saved(saved, out)
    return saved


def _print_saved(saved: dict[str, Any], out: TextIO) -> None:
    words = {"keep": "kept", "relabel": "relabeled", "exclude": "excluded"}
    counts = ", ".join(f"{saved[action]} {word}" for action, word in words.items())
    if any(saved[action] for action in words):
        print(f"saved    {counts} in {saved['table']}", file=out)
        print(f"next     {saved['command']}", file=out)
    else:
        print("saved    nothing, because nothing was decided", file=out)
