"""List the runs in a folder, the newest first."""

import argparse

from flowers_torch.commands import add_json, print_json
from flowers_torch.errors import printable
from flowers_torch.files.system import expand_home


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", nargs="?", default="runs", metavar="FOLDER", help="folder that holds the runs [runs]")
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    from flowers_torch.runs.listing import list_runs

    found = list_runs(expand_home(args.folder))
    if args.json:
        print_json([vars(row) for row in found])
        return
    if not found:
        print(f"there are no runs in {printable(args.folder)}")
        return
    width = max(len(printable(row.name, 60)) for row in found)
    data, arch = (max(len(printable(getattr(row, name), 30)) for row in found) for name in ("data", "arch"))
    data, arch = max(data, 4), max(arch, 7)
    print(f"{'run':{width}}  {'date':16}  {'data':{data}}  {'network':{arch}}  accuracy  95% interval    state")
    for row in found:
        accuracy = "" if row.accuracy is None else f"{row.accuracy:.4f}"
        interval = "{:.3f} .. {:.3f}".format(*row.interval_95) if row.interval_95 else ""
        print(
            f"{printable(row.name, 60):{width}}  {row.date}  {printable(row.data, 30):{data}}  "
            f"{printable(row.arch, 30):{arch}}  {accuracy:8}  {interval:14}  "
            f"{'finished' if row.finished else 'unfinished'}"
        )
